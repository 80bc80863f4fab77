"""The bell: as many hosts as there is work for are woken, and no ring is missed."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from memgrid.units import HostId
from memgrid_coordinator.services.bell import WOKEN_AT_ONCE, Bell, wait_for

HOSTS = [HostId(f"host-{number}") for number in range(3 * WOKEN_AT_ONCE)]


def listeners(bell: Bell, stack: ExitStack) -> list[asyncio.Event]:
    return [stack.enter_context(bell.listening(host_id)) for host_id in HOSTS]


def woken(heard: list[asyncio.Event]) -> list[int]:
    return [number for number, one in enumerate(heard) if one.is_set()]


def test_work_wakes_those_who_have_waited_longest_and_then_one_for_each_that_got_some() -> None:
    bell = Bell()
    with ExitStack() as stack:
        heard = listeners(bell, stack)
        bell.ring_for_work()
        assert woken(heard) == list(range(WOKEN_AT_ONCE))
        for _ in range(3):
            bell.pass_on()
        assert woken(heard) == list(range(WOKEN_AT_ONCE + 3))


def test_nobody_is_woken_who_does_not_listen_any_more() -> None:
    bell = Bell()
    with bell.listening(HOSTS[0]) as former, bell.listening(HOSTS[0]) as heard:
        bell.ring_hosts([HOSTS[0], HOSTS[1]])
        assert heard.is_set() and not former.is_set(), "the later call of a host is the one that is there"
    with ExitStack() as stack:
        listeners(bell, stack)
    with bell.listening(HOSTS[-1]) as last:
        bell.ring_for_work()
        assert last.is_set(), "those who have gone are woken in nobody's stead"


async def test_what_is_rung_before_somebody_waits_is_heard_once() -> None:
    bell = Bell()
    with bell.listening(HOSTS[0]) as heard:
        bell.ring_hosts(HOSTS[:1])
        assert await wait_for(heard, 60.0)
        assert not await wait_for(heard, 0.0)
