"""Wakes calls that are held open, when there is something to say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from memgrid.units import HostId

WOKEN_AT_ONCE = 64
"""Waiting hosts one ring for work wakes: enough to take what opened, without a stampede of the whole grid."""


class Bell:
    """Hosts wait for work, or for news of their own; nothing is lost if they don't hear it, it only comes later."""

    def __init__(self) -> None:
        self._waiting: dict[HostId, asyncio.Event] = {}

    async def wait(self, host_id: HostId, timeout_s: float) -> None:
        """Return when rung for, or after `timeout_s`."""
        heard = self._waiting.setdefault(host_id, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await heard.wait()
        except TimeoutError:
            pass
        finally:
            if self._waiting.get(host_id) is heard:
                del self._waiting[host_id]

    def ring_hosts(self, host_ids: Iterable[HostId]) -> None:
        """These hosts have news."""
        for host_id in host_ids:
            if heard := self._waiting.get(host_id):
                heard.set()

    def ring_for_work(self) -> None:
        """There is work: wake those who have waited longest."""
        for heard in list(self._waiting.values())[:WOKEN_AT_ONCE]:
            heard.set()

    def ring_everybody(self) -> None:
        """The coordinator is stopping: let nobody wait in vain."""
        for heard in self._waiting.values():
            heard.set()
