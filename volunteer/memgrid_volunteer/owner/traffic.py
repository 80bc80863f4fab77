"""How much has gone over the network this month, for owners whose month has an end."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from memgrid.clock import Clock
from memgrid_volunteer.owner.files import replace_text
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.owner.probes.probe import Reading

TRAFFIC_FILE = "traffic.json"
_WRITE_EVERY_BYTES = 16 << 20
_WRITE_EVERY_S = 30.0


class Traffic:
    """Counts what is sent and received; on disk after some megabytes or half a minute, so little is lost by a kill.

    For one process. It is a probe as well: what it reads is the month's sum.
    """

    name = "traffic"
    period_s = 2.0

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._path = folder / TRAFFIC_FILE
        self._clock = clock
        self._month, self._bytes = _read(self._path)
        self._written_bytes, self._written_s = self._bytes, clock.monotonic_s()

    def add(self, count: int) -> None:
        """Bytes that have gone either way."""
        self._turn_page()
        self._bytes += count
        if self._bytes - self._written_bytes >= _WRITE_EVERY_BYTES:
            self.write()

    @property
    def month_bytes(self) -> int:
        self._turn_page()
        return self._bytes

    def read(self) -> Reading:
        is_news = self._bytes != self._written_bytes
        if is_news and self._clock.monotonic_s() - self._written_s >= _WRITE_EVERY_S:
            self.write()
        return Reading(month_bytes=self.month_bytes)

    def write(self) -> None:
        """Before the process ends."""
        replace_text(self._path, json.dumps({"month": self._month, "bytes": self._bytes}), durable=False)
        self._written_bytes, self._written_s = self._bytes, self._clock.monotonic_s()

    def _turn_page(self) -> None:
        month = month_of(self._clock.now().astimezone(LOCAL))
        if month != self._month:
            self._month, self._bytes, self._written_bytes = month, 0, 0


def month_of(moment: datetime) -> str:
    """
    >>> month_of(datetime(2026, 3, 2))
    '2026-03'
    """
    return f"{moment:%Y-%m}"


def _read(path: Path) -> tuple[str, int]:
    """What the month has had so far; a file that is no such thing counts from nothing."""
    try:
        value = json.loads(path.read_bytes())
        return str(value["month"]), int(value["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0
