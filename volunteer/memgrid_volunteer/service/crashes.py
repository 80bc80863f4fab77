"""Starts and how they ended, in a file; and how long to wait when they keep ending badly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from memgrid.errors import InvalidError
from memgrid_volunteer.owner.files import read_whole, write_whole

STARTS_FILE = "starts.json"
LOOP_COUNT = 3
LOOP_WITHIN = timedelta(minutes=15)
FIRST_PAUSE = timedelta(minutes=1)
PAUSE_MAX = timedelta(hours=1)
_KEPT = 20
_WITHOUT_A_WORD = "ended without a word: killed, or the machine went off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a volunteer. `error` is None while it runs, and when nobody was left to say how it ended."""

    at: datetime
    ended_at: datetime | None = None
    error: str | None = None
    """Empty: it ended well."""

    @property
    def is_bad(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.error != ""

    @property
    def reason(self) -> str:
        return _WITHOUT_A_WORD if self.error is None else self.error


def pause_before(starts: Sequence[Start], now: datetime) -> timedelta:
    """How long to wait before the next start, given all before it, the oldest first.

    Nothing, as long as fewer than three in a row have ended badly with no more than a quarter of an hour from start
    to start; then a minute, and twice as long with each that follows, up to an hour. What has been waited counts.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    >>> bad = [Start(at=noon + timedelta(minutes=n), error="no disk") for n in range(3)]
    >>> pause_before(bad, noon + timedelta(minutes=2)), pause_before(bad[:2], noon + timedelta(minutes=2))
    (datetime.timedelta(seconds=60), datetime.timedelta(0))
    """
    row = 0
    later = now
    allowed = LOOP_WITHIN
    for start in reversed(starts):
        # A clock that was set back says nothing about how long ago it was.
        if not start.is_bad or not timedelta(0) <= later - start.at <= allowed:
            break
        row, later = row + 1, start.at
        # Between two starts lies the pause that was made, too.
        allowed = LOOP_WITHIN + PAUSE_MAX
    if row < LOOP_COUNT:
        return timedelta(0)
    return min(FIRST_PAUSE * (1 << min(row - LOOP_COUNT, 16)), PAUSE_MAX)


class Starts:
    """The file of starts in a volunteer's home; damaged, it is begun anew, for nothing hangs on it but a pause."""

    def __init__(self, home: Path) -> None:
        self._path = home / STARTS_FILE

    def all(self) -> list[Start]:
        """The oldest first."""
        try:
            kept = (read_whole(self._path) or {}).get("starts", [])
            return [_from_json(each) for each in kept]
        except (InvalidError, ValueError, TypeError, KeyError, AttributeError):
            return []

    def begin(self, now: datetime) -> None:
        self._write([*self.all(), Start(at=now)])

    def end(self, now: datetime, error: str) -> None:
        """How the last start ended; `error` is empty when it ended well."""
        *before, last = self.all() or [Start(at=now)]
        self._write([*before, Start(at=last.at, ended_at=now, error=error)])

    def _write(self, starts: list[Start]) -> None:
        write_whole(self._path, {"starts": [_to_json(start) for start in starts[-_KEPT:]]})


def _to_json(start: Start) -> dict[str, Any]:
    value = asdict(start)
    return {name: each.isoformat() if isinstance(each, datetime) else each for name, each in value.items()}


def _from_json(value: dict[str, Any]) -> Start:
    ended = value["ended_at"]
    error = value["error"]
    return Start(
        at=datetime.fromisoformat(value["at"]),
        ended_at=None if ended is None else datetime.fromisoformat(ended),
        error=None if error is None else str(error),
    )
