"""What this volunteer has done, unit by unit and day by day: one small database in its home."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Any

from memgrid.log import get_logger
from memgrid.units import UnitKey
from memgrid_volunteer.done import DoneUnit, Fate, Outcome, Total
from memgrid_volunteer.history_rows import (
    COMPUTED,
    DONE_BY_HOUR,
    INSERT,
    JUDGE,
    JUDGED_BY_HOUR,
    TELL_FATE,
    WITHOUT_FATE,
    connect,
    count,
    forget_old,
    seconds_of,
    to_day,
    to_hour,
    to_unit,
)

HISTORY_FILE = "history.db"
_FORGET_EVERY = 100

log = get_logger(__name__)


class History:
    """Opened when it is first used. Raises sqlite3.Error when the disk does not let it; a damaged file is put aside.

    >>> import tempfile
    >>> from datetime import UTC
    >>> history = History(Path(tempfile.mkdtemp()))
    >>> now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> history.add(DoneUnit(at=now, unit_key=UnitKey("ab" * 32), tokens=512, compute_s=4.0))
    >>> history.judge(UnitKey("ab" * 32), Outcome.ACCEPTED, "", 58_000_000_000, now, grid="")
    >>> [(unit.outcome.value, unit.tokens_per_s) for unit in history.units()]
    [('accepted', 128.0)]
    >>> history.close()
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / HISTORY_FILE
        self._connection: sqlite3.Connection | None = None
        self._added = 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def add(self, unit: DoneUnit) -> None:
        """Write down how a unit ended."""
        row = (seconds_of(unit.at), unit.unit_key, unit.kind, unit.work, unit.grid, unit.device_id, unit.tokens,
               unit.compute_s, unit.outcome.value, unit.reason[:500], unit.utilisation)  # fmt: skip
        done = unit.outcome in (Outcome.AWAITING, Outcome.ACCEPTED)
        with self._open() as connection:
            connection.execute(INSERT, row)
            count(connection, unit.at, units=int(done), tokens=unit.tokens if done else 0, compute_s=unit.compute_s)
            if self._added % _FORGET_EVERY == 0:
                forget_old(connection, unit.at)
        self._added += 1

    def judge(
        self, key: UnitKey, outcome: Outcome, reason: str, credit_flops: int, now: datetime, *, grid: str
    ) -> None:
        """What its grid says of a unit that was reported; of one that is not known here only the credit counts."""
        with self._open() as connection:
            connection.execute(JUDGE, (outcome.value, reason[:500], float(credit_flops), seconds_of(now), key, grid))
            accepted, rejected = outcome is Outcome.ACCEPTED, outcome is Outcome.REJECTED
            count(connection, now, accepted=int(accepted), rejected=int(rejected), credit_flops=float(credit_flops))

    def units(self, *, before: int | None = None, limit: int = 50) -> list[DoneUnit]:
        """A page of units, newest first; `before` is the number of the last of the former page."""
        query = "SELECT * FROM units WHERE number < ? ORDER BY number DESC LIMIT ?"
        rows = self._open().execute(query, (before or 1 << 62, limit))
        return [to_unit(row) for row in rows]

    def newest(self) -> int:
        """The number of the last unit that ended here; 0 before the first."""
        (number,) = self._open().execute("SELECT max(number) FROM units").fetchone()
        return number or 0

    def days(self, since: date) -> list[Total]:
        """Every day with anything in it, oldest first."""
        rows = self._open().execute("SELECT * FROM days WHERE day >= ? ORDER BY day", (since.isoformat(),))
        return [to_day(row) for row in rows]

    def hours(self, since: datetime) -> list[Total]:
        """Units, credit and the rest of each hour that has any, oldest first."""
        hours: dict[int, list[Any]] = {}
        connection = self._open()
        for hour, *sums in connection.execute(DONE_BY_HOUR, (seconds_of(since),)):
            hours[hour] = [*sums, 0, 0, 0]
        for hour, *sums in connection.execute(JUDGED_BY_HOUR, (seconds_of(since),)):
            hours[hour] = [*hours.get(hour, (0, 0, 0.0))[:3], *sums]
        return [to_hour(hour, hours[hour]) for hour in sorted(hours)]

    def without_fate(self, grid: str, asked_before: datetime, limit: int) -> list[UnitKey]:
        """Accepted units of a grid of which no cube is known, and which it was not asked about since."""
        rows = self._open().execute(WITHOUT_FATE, (grid, seconds_of(asked_before), limit))
        return [UnitKey(key) for (key,) in rows]

    def computed_s(self, since: datetime) -> dict[str, float]:
        """Device-seconds that were computed for each grid since then, by its address."""
        return {str(grid): float(total) for grid, total in self._open().execute(COMPUTED, (seconds_of(since),))}

    def tell_fate(
        self, fates: Mapping[UnitKey, Sequence[Fate]], asked: Iterable[UnitKey], now: datetime, *, grid: str
    ) -> None:
        """What a grid answered about the units it was asked about; those that it does not know stay without."""
        with self._open() as connection:
            for key in asked:
                fate = fates.get(key, ())
                text = json.dumps([asdict(each) for each in fate])
                has_cube = any(each.cube for each in fate)
                connection.execute(TELL_FATE, (text, has_cube, seconds_of(now), key, grid))

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = connect(self._path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                # It can be done without; what was in it may still be wanted by somebody with more patience.
                log.warning("history damaged, begun anew", file=str(self._path), error=str(error))
                self._path.replace(self._path.with_suffix(".damaged"))
                self._connection = connect(self._path)
        return self._connection
