"""Work that gathers while other work is under way, done many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Generic, TypeVar

from memgrid.log import get_logger

log = get_logger(__name__)
Item = TypeVar("Item")


class Backlog(Generic[Item]):
    """One batch after another: a lone item never waits, and under load batches grow by themselves.

    What fails is logged and forgotten; whoever looks at stored state later brings it again.
    """

    def __init__(self, name: str, work: Callable[[list[Item]], Awaitable[None]], *, batch_max: int) -> None:
        self._name = name
        self._work = work
        self._batch_max = batch_max
        self._waiting: dict[Item, None] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, items: Iterable[Item]) -> None:
        """Do these soon; an item that waits already is not doubled."""
        self._waiting |= dict.fromkeys(items)
        if self._waiting and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def drained(self) -> None:
        """Return when nothing waits or runs."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = list(islice(self._waiting, self._batch_max))
                for item in batch:
                    del self._waiting[item]
                await self._do(batch)
        finally:
            self._task = None

    async def _do(self, batch: list[Item]) -> None:
        try:
            await self._work(batch)
        except Exception:
            log.exception("work failed", backlog=self._name, items=len(batch))
            if len(batch) > 1:
                # One bad item must not take its neighbours along.
                for item in batch:
                    await self._do([item])
