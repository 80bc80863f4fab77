"""The tables of the history, and how their rows become values."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from memgrid.units import UnitKey
from memgrid_volunteer.done import DoneUnit, Fate, Outcome, Total
from memgrid_volunteer.owner.local_time import LOCAL

UNITS_FOR = timedelta(days=90)
UNITS_MAX = 100_000
DAYS_MAX = 3660
_LOCK_LIMIT_S = 1.0


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCK_LIMIT_S)
    try:
        # A power cut may take the last units with it, never the file.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


def count(connection: sqlite3.Connection, at: datetime, **more: float) -> None:
    day = at.astimezone(LOCAL).date().isoformat()
    connection.execute("INSERT OR IGNORE INTO days (day) VALUES (?)", (day,))
    sums = ", ".join(f"{name} = {name} + ?" for name in more)
    connection.execute(f"UPDATE days SET {sums} WHERE day = ?", (*more.values(), day))


def forget_old(connection: sqlite3.Connection, now: datetime) -> None:
    connection.execute("DELETE FROM units WHERE at < ?", (seconds_of(now - UNITS_FOR),))
    connection.execute("DELETE FROM units WHERE number <= (SELECT max(number) FROM units) - ?", (UNITS_MAX,))
    connection.execute(
        "DELETE FROM days WHERE day NOT IN (SELECT day FROM days ORDER BY day DESC LIMIT ?)", (DAYS_MAX,)
    )


def to_unit(row: sqlite3.Row) -> DoneUnit:
    return DoneUnit(
        number=row["number"],
        at=moment_of(row["at"]),
        unit_key=UnitKey(row["unit_key"]),
        kind=row["kind"],
        work=row["work"],
        grid=row["grid"],
        device_id=row["device_id"],
        tokens=row["tokens"],
        compute_s=row["compute_s"],
        utilisation=row["utilisation"],
        outcome=Outcome(row["outcome"]),
        reason=row["reason"],
        credit_flops=int(row["credit_flops"]),
        fate=tuple(Fate(**each) for each in json.loads(row["fate"] or "[]")),
    )


def to_day(row: sqlite3.Row) -> Total:
    return _total(datetime.fromisoformat(row["day"]).replace(tzinfo=LOCAL), [row[name] for name in _SUMMED])


def to_hour(hour: int, sums: Sequence[Any]) -> Total:
    return _total(moment_of(hour * 3600), sums)


def _total(at: datetime, sums: Sequence[Any]) -> Total:
    *whole, credit_flops = sums
    return Total(at=at, credit_flops=int(credit_flops), **dict(zip(_SUMMED[:-1], whole, strict=True)))


def seconds_of(moment: datetime) -> float:
    return moment.timestamp()


def moment_of(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


_SUMMED = ("units", "tokens", "compute_s", "accepted", "rejected", "credit_flops")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS units (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    unit_key TEXT NOT NULL,
    kind TEXT NOT NULL,
    work TEXT NOT NULL,
    grid TEXT NOT NULL,
    device_id TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    compute_s REAL NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    utilisation REAL,
    credit_flops REAL NOT NULL DEFAULT 0,
    judged_at REAL,
    fate TEXT,
    has_cube INTEGER NOT NULL DEFAULT 0,
    asked_at REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS units_by_key ON units (unit_key);
CREATE INDEX IF NOT EXISTS units_by_end ON units (at);
CREATE INDEX IF NOT EXISTS units_by_verdict ON units (judged_at);
CREATE INDEX IF NOT EXISTS units_without_cube ON units (number) WHERE outcome = 'accepted' AND NOT has_cube;
CREATE TABLE IF NOT EXISTS days (
    day TEXT PRIMARY KEY,
    units INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0,
    compute_s REAL NOT NULL DEFAULT 0,
    credit_flops REAL NOT NULL DEFAULT 0
);
"""
INSERT = """
INSERT INTO units (at, unit_key, kind, work, grid, device_id, tokens, compute_s, outcome, reason, utilisation)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
JUDGE = """
UPDATE units SET outcome = ?, reason = ?, credit_flops = ?, judged_at = ?
WHERE number = (SELECT max(number) FROM units WHERE unit_key = ? AND grid = ? AND outcome = 'awaiting')
"""
COMPUTED = "SELECT grid, sum(compute_s) FROM units WHERE at >= ? GROUP BY grid"
DONE_BY_HOUR = """
SELECT CAST(at / 3600 AS INTEGER), count(*), sum(tokens), sum(compute_s) FROM units
WHERE at >= ? AND outcome NOT IN ('given_back', 'stopped') GROUP BY 1
"""
JUDGED_BY_HOUR = """
SELECT CAST(judged_at / 3600 AS INTEGER), sum(outcome = 'accepted'), sum(outcome = 'rejected'), sum(credit_flops)
FROM units WHERE judged_at >= ? GROUP BY 1
"""
WITHOUT_FATE = """
SELECT DISTINCT unit_key FROM units
WHERE outcome = 'accepted' AND NOT has_cube AND grid = ? AND asked_at < ?
ORDER BY number DESC LIMIT ?
"""
TELL_FATE = "UPDATE units SET fate = ?, has_cube = ?, asked_at = ? WHERE unit_key = ? AND grid = ?"
