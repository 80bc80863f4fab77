"""A line that is fair: nobody is passed over, nobody is lost, and never more work at once than there are slots."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.errors import DrainingError
from memgrid_coordinator.heavy.slots import Load, Slots

MOVES = st.lists(
    st.one_of(
        st.just(("come", 0)),
        st.tuples(st.sampled_from(["end", "cancel"]), st.integers(0, 9)),
        st.tuples(st.just("resize"), st.integers(0, 4)),
    ),
    max_size=40,
)


@dataclass
class Visitors:
    """Calls that come, wait, work and go, in a history that hypothesis thinks up."""

    slots: Slots
    begun: list[int] = field(default_factory=list)
    working: dict[int, asyncio.Event] = field(default_factory=dict)
    calls: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    async def visit(self, number: int) -> None:
        await self.slots.take()
        try:
            self.begun.append(number)
            self.working[number] = asyncio.Event()
            await self.working[number].wait()
        finally:
            self.working.pop(number, None)
            self.slots.give_back()

    @property
    def waiting(self) -> list[int]:
        return [number for number, call in self.calls.items() if not call.done() and number not in self.working]

    def come(self) -> None:
        number = len(self.calls)
        self.calls[number] = asyncio.create_task(self.visit(number))

    def end(self, which: int) -> None:
        if self.working:
            self.working[sorted(self.working)[which % len(self.working)]].set()

    def cancel(self, which: int) -> None:
        left = [call for call in self.calls.values() if not call.done()]
        if left:
            left[which % len(left)].cancel()


async def settled() -> None:
    """Until everybody who can do something has done it."""
    for _ in range(6):
        await asyncio.sleep(0)


async def play(first: int, moves: list[tuple[str, int]]) -> None:
    visitors, count = Visitors(Slots(first)), first
    for move, number in moves:
        before = len(visitors.working)
        if move == "come":
            visitors.come()
        elif move == "resize":
            count = number
            visitors.slots.resize(count)
        else:
            getattr(visitors, move)(number)
        await settled()
        working, waiting = len(visitors.working), len(visitors.waiting)
        assert visitors.slots.load == Load(running=working, waiting=waiting, slots=count)
        assert working <= max(count, before), "more work than there are slots"
        assert not waiting or working >= count, "somebody waits beside a free slot"
        assert visitors.begun == sorted(visitors.begun), "somebody was passed over"
    for call in visitors.calls.values():
        call.cancel()
    await asyncio.gather(*visitors.calls.values(), return_exceptions=True)
    assert visitors.slots.load == Load(running=0, waiting=0, slots=count)


@given(first=st.integers(0, 3), moves=MOVES)
def test_whatever_happens_the_line_is_fair(first: int, moves: list[tuple[str, int]]) -> None:
    asyncio.run(play(first, moves))


async def test_who_is_cancelled_when_its_turn_has_just_come_hands_it_on() -> None:
    slots = Slots(1)
    await slots.take()
    first, second = (asyncio.create_task(slots.take()) for _ in range(2))
    await settled()
    slots.give_back()
    first.cancel()  # before it could run
    await second
    assert first.cancelled()
    assert slots.load == Load(running=1, waiting=0, slots=1)


async def test_whoever_waits_can_be_sent_away() -> None:
    slots = Slots(1)
    await slots.take()
    waiting = [asyncio.create_task(slots.take()) for _ in range(2)]
    await settled()
    slots.refuse(DrainingError("the coordinator is stopping"))
    for one in waiting:
        with pytest.raises(DrainingError):
            await one
    assert slots.load == Load(running=1, waiting=0, slots=1)
