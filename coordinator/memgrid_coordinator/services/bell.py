"""Wakes calls that are held open, when there is something to say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from memgrid.units import HostId

WOKEN_AT_ONCE = 16
"""Waiting hosts that one ring for work wakes: enough to take what opened, without a stampede of the whole grid."""


class Bell:
    """Hosts wait for work, or for news of their own; nothing is lost if they don't hear it, it only comes later."""

    def __init__(self) -> None:
        self._listening: dict[HostId, asyncio.Event] = {}

    @contextmanager
    def listening(self, host_id: HostId) -> Iterator[asyncio.Event]:
        """What is rung for the host while this is open sets the event, also before somebody waits for it.

        >>> bell = Bell()
        >>> with bell.listening(HostId("h")) as heard:
        ...     bell.ring_hosts(["h"])
        ...     heard.is_set()
        True
        """
        heard = asyncio.Event()
        self._listening[host_id] = heard
        try:
            yield heard
        finally:
            # A second call of the same host may have taken its place.
            if self._listening.get(host_id) is heard:
                del self._listening[host_id]

    def ring_hosts(self, host_ids: Iterable[HostId]) -> None:
        """These hosts have news."""
        for host_id in host_ids:
            if heard := self._listening.get(host_id):
                heard.set()

    def ring_for_work(self) -> None:
        """There is work: wake some of those who have waited longest; each that gets some calls `pass_on`."""
        self._wake(WOKEN_AT_ONCE)

    def pass_on(self) -> None:
        """A host got what it wanted, so there may be more: wake the next one.

        So as many hosts as there is work for are woken, some at a time, and few in vain.
        """
        self._wake(1)

    def _wake(self, most: int) -> None:
        asleep = (heard for heard in self._listening.values() if not heard.is_set())
        for heard in list(islice(asleep, most)):
            heard.set()

    def ring_everybody(self) -> None:
        """The coordinator is stopping: let nobody wait in vain."""
        for heard in self._listening.values():
            heard.set()


async def wait_for(heard: asyncio.Event, limit_s: float) -> bool:
    """Whether it was rung within that time; what was heard is forgotten, to listen again."""
    try:
        async with asyncio.timeout(limit_s):
            await heard.wait()
    except TimeoutError:
        return False
    heard.clear()
    return True
