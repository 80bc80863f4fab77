"""Keep an answer that is dear to find for a while, and find it once for everybody who asks meanwhile."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from memgrid.clock import Clock

Value = TypeVar("Value")
DEAR = 20
"""An answer is kept this many times as long as finding it took: readers cost a twentieth of a core at most."""
STALE = 10
"""An answer up to so many times older than it should be is given at once, while a newer one is being found."""


@dataclass(slots=True)
class _Entry:
    value: Any = None
    found_at_s: float | None = None
    keep_s: float = 0.0
    finding: asyncio.Task[Any] | None = None


class Keeping:
    """Answers by key, the least wanted forgotten first; one is looked for at a time."""

    def __init__(self, clock: Clock, *, keep_s: float, entries_max: int = 256) -> None:
        self._clock = clock
        self._keep_s = keep_s
        self._entries_max = entries_max
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        # The readers of the store have more to do than to draw pages.
        self._turn = asyncio.Semaphore(1)

    async def get(self, key: Hashable, find: Callable[[], Awaitable[Value]]) -> Value:
        """The answer for `key`; raises what `find` raises, which is kept for nobody."""
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
        age_s = None if entry.found_at_s is None else self._clock.monotonic_s() - entry.found_at_s
        if age_s is not None and age_s < entry.keep_s:
            return cast(Value, entry.value)
        if entry.finding is None:
            entry.finding = asyncio.create_task(self._find(key, entry, find))
            entry.finding.add_done_callback(_look_at)
        if age_s is not None and age_s < STALE * entry.keep_s:
            return cast(Value, entry.value)
        # A reader who goes away must not take the answer from those who still wait for it.
        return await asyncio.shield(entry.finding)

    async def close(self) -> None:
        """Look for nothing any more."""
        tasks = [entry.finding for entry in self._entries.values() if entry.finding is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _find(self, key: Hashable, entry: _Entry, find: Callable[[], Awaitable[Value]]) -> Value:
        try:
            async with self._turn:
                started_s = self._clock.monotonic_s()
                value = await find()
                took_s = self._clock.monotonic_s() - started_s
        except BaseException:
            if entry.found_at_s is None and self._entries.get(key) is entry:
                del self._entries[key]  # nobody is remembered for having asked for what is not there
            raise
        finally:
            entry.finding = None
        entry.value, entry.found_at_s = value, started_s + took_s
        entry.keep_s = max(self._keep_s, DEAR * took_s)
        return value


def _look_at(task: asyncio.Task[Any]) -> None:
    """Whoever waits is told of a failure; where nobody does, the older answer stands."""
    if not task.cancelled():
        task.exception()
