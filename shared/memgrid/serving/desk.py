"""Hands questions to the one model: one answer at a time, a short queue, and an end when nobody listens any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from memgrid.errors import MemgridError

Item = TypeVar("Item")
Work = Callable[[Callable[[], bool]], Iterator[Item]]
"""What a turn does: given how to find out that it was cancelled, it yields its results one by one."""


class BusyError(MemgridError):
    """More questions than may wait."""


class Desk:
    """Turns at something that only one can use; the work runs in a thread of its own."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._taken = 0
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, work: Work[Item]) -> AsyncIterator[AsyncGenerator[Item]]:
        """The results of `work` as they come; leaving early cancels it and waits until it has ended.

        Raises BusyError when too many wait already, and whatever the work raises.
        """
        if self._taken > self._waiting_max:
            raise BusyError(f"one answer is being written and {self._waiting_max} wait already; try again later")
        self._taken += 1
        try:
            async with self._turn, aclosing(_in_thread(work)) as results:
                yield results
        finally:
            self._taken -= 1


async def _in_thread(work: Work[Item]) -> AsyncGenerator[Item]:
    loop, left = asyncio.get_running_loop(), threading.Event()
    results: asyncio.Queue[tuple[Item | None, BaseException | None]] = asyncio.Queue()

    def tell(item: Item | None, error: BaseException | None) -> None:
        loop.call_soon_threadsafe(results.put_nowait, (item, error))

    def run() -> None:
        try:
            for item in work(left.is_set):
                tell(item, None)
        except BaseException as error:  # noqa: BLE001 - raised again where the results are read
            tell(None, error)
        else:
            tell(None, StopAsyncIteration())

    thread = asyncio.create_task(asyncio.to_thread(run))
    try:
        while True:
            item, error = await results.get()
            if isinstance(error, StopAsyncIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        left.set()
        # Whoever comes next must find the model free, even when this one was cancelled meanwhile.
        await asyncio.shield(thread)
