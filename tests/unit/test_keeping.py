"""Answers that are kept: found once for all who ask, renewed behind the readers' backs, and no failure kept."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from memgrid.clock import ManualClock
from memgrid_coordinator.services.keeping import DEAR, STALE, Keeping

KEEP_S = 5.0


class Finder:
    """Finds numbers that count upwards, as slowly as a test wants."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.calls = 0
        self.took = timedelta(0)
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failure: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        await self.may_answer.wait()
        self._clock.advance(self.took)
        if self.failure is not None:
            raise self.failure
        return self.calls


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def find(clock: ManualClock) -> Finder:
    return Finder(clock)


@pytest.fixture
def keeping(clock: ManualClock) -> Keeping:
    return Keeping(clock, keep_s=KEEP_S, entries_max=2)


async def idle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_many_who_ask_at_once_are_answered_by_one_search(keeping: Keeping, find: Finder) -> None:
    assert await asyncio.gather(*[keeping.get("a", find) for _ in range(50)]) == [1] * 50


async def test_an_older_answer_is_given_while_a_newer_one_is_found(
    keeping: Keeping, find: Finder, clock: ManualClock
) -> None:
    await keeping.get("a", find)
    clock.advance(timedelta(seconds=KEEP_S - 1))
    assert await keeping.get("a", find) == 1
    clock.advance(timedelta(seconds=2))
    find.may_answer.clear()
    assert [await keeping.get("a", find), await keeping.get("a", find)] == [1, 1]
    find.may_answer.set()
    await idle()
    assert (await keeping.get("a", find), find.calls) == (2, 2)


async def test_an_answer_that_is_much_too_old_is_waited_for(
    keeping: Keeping, find: Finder, clock: ManualClock
) -> None:
    await keeping.get("a", find)
    clock.advance(timedelta(seconds=STALE * KEEP_S + 1))
    assert await keeping.get("a", find) == 2


async def test_what_is_dear_to_find_is_kept_longer(keeping: Keeping, find: Finder, clock: ManualClock) -> None:
    find.took = timedelta(seconds=3)
    await keeping.get("a", find)
    clock.advance(timedelta(seconds=3 * DEAR - 1))
    assert (await keeping.get("a", find), find.calls) == (1, 1)


async def test_a_reader_who_leaves_takes_nothing_from_the_others(keeping: Keeping, find: Finder) -> None:
    find.may_answer.clear()
    leaving, staying = [asyncio.create_task(keeping.get("a", find)) for _ in range(2)]
    await idle()
    leaving.cancel()
    await idle()
    find.may_answer.set()
    assert await staying == 1


async def test_a_failure_is_told_to_whoever_waits_and_kept_for_nobody(
    keeping: Keeping, find: Finder, clock: ManualClock
) -> None:
    find.failure = LookupError("no such thing")
    with pytest.raises(LookupError):
        await keeping.get("a", find)
    find.failure = None
    assert await keeping.get("a", find) == 2
    clock.advance(timedelta(seconds=KEEP_S + 1))
    find.failure = LookupError("the database has gone")
    assert await keeping.get("a", find) == 2, "an older answer is better than none"
    await idle()
    assert await keeping.get("a", find) == 2


async def test_the_least_wanted_answers_are_forgotten(keeping: Keeping, find: Finder) -> None:
    assert [await keeping.get(key, find) for key in ("a", "b", "a", "c", "a", "b")] == [1, 2, 1, 3, 1, 4]


async def test_closing_ends_what_is_being_looked_for(keeping: Keeping, find: Finder) -> None:
    find.may_answer.clear()
    waiting = asyncio.create_task(keeping.get("a", find))
    await idle()
    await keeping.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
