"""What may go over the network: a pace in each direction, and so many bytes a month."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from memgrid.clock import Clock
from memgrid.log import get_logger
from memgrid.units import Reason
from memgrid_volunteer.home import write_whole
from memgrid_volunteer.owner.preferences import Network

BURST_S = 1.0
"""What was not used of so long may be used at once."""
_MONTH_FILE = "network.json"
_WRITE_EVERY_S = 10.0
_LOOK_AGAIN_S = 1.0

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Bucket:
    """A token bucket that may be overdrawn: whoever takes waits until it is even again. `rate` in bytes a second."""

    rate: float | None = None
    _level: float = 0.0
    _seen_s: float | None = None

    def take(self, size_bytes: int, now_s: float) -> float:
        """Seconds to wait before going on.

        >>> bucket = Bucket(rate=1000.0)
        >>> bucket.take(500, 0.0), bucket.take(2500, 0.0), bucket.take(0, 2.0)
        (0.0, 2.0, 0.0)
        """
        if self.rate is None:
            self._seen_s = None
            return 0.0
        most = self.rate * BURST_S
        if self._seen_s is None:
            self._level, self._seen_s = most, now_s
        self._level = min(most, self._level + max(0.0, now_s - self._seen_s) * self.rate)
        self._seen_s = now_s
        self._level -= size_bytes
        return max(0.0, -self._level / self.rate)


@dataclass(slots=True, kw_only=True)
class Month:
    """Bytes of one calendar month, by the owner's clock; `label` as in `2026-11`."""

    label: str = ""
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.sent_bytes + self.received_bytes

    def turn_to(self, label: str) -> None:
        """Begin anew in a new month; a clock that was set back begins nothing.

        >>> month = Month(label="2026-11", sent_bytes=5)
        >>> month.turn_to("2026-10"); month.total_bytes
        5
        >>> month.turn_to("2026-12"); month.total_bytes
        0
        """
        if label > self.label:
            self.label, self.sent_bytes, self.received_bytes = label, 0, 0


@dataclass(slots=True, kw_only=True)
class Budget:
    """Asked before and after every block that travels; `spared` closes both ways while it is not None."""

    folder: Path
    clock: Clock
    spared: Reason | None = None
    _up: Bucket = field(default_factory=Bucket)
    _down: Bucket = field(default_factory=Bucket)
    _month: Month = field(default_factory=Month)
    _written_s: float = 0.0

    def __post_init__(self) -> None:
        self._month = _read(self.folder / _MONTH_FILE)

    def allow(self, network: Network) -> None:
        """What the owner allows from now on."""
        self._up.rate = None if network.up_kbps is None else 1e3 * float(network.up_kbps)
        self._down.rate = None if network.down_kbps is None else 1e3 * float(network.down_kbps)

    @property
    def month_bytes(self) -> int:
        self._month.turn_to(_label(self.clock.now()))
        return self._month.total_bytes

    async def open(self) -> None:
        """Returns when something may travel at all."""
        while self.spared is not None:  # noqa: ASYNC110 - the owner's wishes come from a file, not from a task
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def received(self, size_bytes: int) -> None:
        """So much has come; returns when more may come."""
        self.count(received_bytes=size_bytes)
        await self._wait(self._down, size_bytes)

    async def sending(self, size_bytes: int) -> None:
        """So much is to go; returns when it may."""
        self.count(sent_bytes=size_bytes)
        await self._wait(self._up, size_bytes)

    def count(self, *, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """What has travelled without waiting."""
        self._month.turn_to(_label(self.clock.now()))
        self._month.sent_bytes += sent_bytes
        self._month.received_bytes += received_bytes
        if self.clock.monotonic_s() - self._written_s >= _WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Keep the month's sum; it is kept now and then anyway."""
        self._written_s = self.clock.monotonic_s()
        month = self._month
        value = {"month": month.label, "sent_bytes": month.sent_bytes, "received_bytes": month.received_bytes}
        try:
            write_whole(self.folder / _MONTH_FILE, value, durable=False)
        except OSError as error:
            log.warning("the month's traffic was not written", error=str(error))

    async def _wait(self, bucket: Bucket, size_bytes: int) -> None:
        wait_s = bucket.take(size_bytes, self.clock.monotonic_s())
        while wait_s > 0 or self.spared is not None:
            # In short steps: a new limit of the owner's counts at once.
            await asyncio.sleep(min(wait_s, _LOOK_AGAIN_S) if self.spared is None else _LOOK_AGAIN_S)
            wait_s = bucket.take(0, self.clock.monotonic_s())


def _label(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m}"


def _read(path: Path) -> Month:
    """What was counted so far; nothing when that is lost, for it stops nobody."""
    try:
        value = json.loads(path.read_bytes())
        return Month(
            label=str(value["month"]),
            sent_bytes=int(value["sent_bytes"]),
            received_bytes=int(value["received_bytes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Month()
