"""What may go over the network: a pace in each direction, and so many bytes a month."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from memgrid.clock import Clock
from memgrid.units import Reason
from memgrid_volunteer.owner.preferences import Network
from memgrid_volunteer.owner.traffic import Traffic
from memgrid_volunteer.worth import Room

BURST_S = 1.0
"""What was not used of so long may be used at once."""
_LOOK_AGAIN_S = 1.0


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
class Budget:
    """Asked before and after every block that travels; `spared` closes both ways while it is not None."""

    traffic: Traffic
    clock: Clock
    spared: Reason | None = None
    _month_bytes: float | None = None
    _up: Bucket = field(default_factory=Bucket)
    _down: Bucket = field(default_factory=Bucket)

    def allow(self, network: Network) -> None:
        """What the owner allows from now on."""
        self._up.rate = None if network.up_kbps is None else 1e3 * float(network.up_kbps)
        self._down.rate = None if network.down_kbps is None else 1e3 * float(network.down_kbps)
        self._month_bytes = None if network.month_gb is None else 1e9 * float(network.month_gb)

    @property
    def room(self) -> Room:
        """What there is of it now."""
        most = self._month_bytes
        left = None if most is None else max(0.0, most - self.traffic.month_bytes)
        return Room(is_spared=self.spared is not None, up_bytes_per_s=self._up.rate, month_left_bytes=left)

    async def open(self) -> None:
        """Returns when something may travel at all."""
        while self.spared is not None:  # noqa: ASYNC110 - the owner's wishes come from a file, not from a task
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def received(self, size_bytes: int) -> None:
        """So much has come; returns when more may come."""
        self.traffic.add(size_bytes)
        await self._wait(self._down, size_bytes)

    async def sending(self, size_bytes: int) -> None:
        """So much is to go; returns when it may."""
        self.traffic.add(size_bytes)
        await self._wait(self._up, size_bytes)

    async def _wait(self, bucket: Bucket, size_bytes: int) -> None:
        wait_s = bucket.take(size_bytes, self.clock.monotonic_s())
        while wait_s > 0 or self.spared is not None:
            # In short steps: a new limit of the owner's counts at once.
            await asyncio.sleep(min(wait_s, _LOOK_AGAIN_S) if self.spared is None else _LOOK_AGAIN_S)
            wait_s = bucket.take(0, self.clock.monotonic_s())
