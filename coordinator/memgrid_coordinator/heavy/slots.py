"""Let so many work at once, and the others wait in line; how many may change at any time."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How many calls run, how many wait for that, and how many may run at once."""

    running: int
    waiting: int
    slots: int


class Slots:
    """First come, first served. Whoever has taken a slot gives it back, whatever happened.

    >>> async def show() -> Load:
    ...     slots = Slots(1)
    ...     await slots.take()
    ...     return slots.load
    >>> asyncio.run(show())
    Load(running=1, waiting=0, slots=1)
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._running = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def load(self) -> Load:
        return Load(running=self._running, waiting=len(self._line), slots=self._count)

    async def take(self) -> None:
        """Wait for a slot; raises what `refuse` was called with meanwhile."""
        if self._running < self._count:
            self._running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._line.remove(turn)
            else:  # its turn had just come
                self.give_back()
            raise

    def give_back(self) -> None:
        """Let the next one begin."""
        self._running -= 1
        self._call_next()

    def resize(self, count: int) -> None:
        """Let so many work at once from now on; nobody is interrupted."""
        self._count = count
        self._call_next()

    def refuse(self, error: Exception) -> None:
        """Send everybody away who waits."""
        line, self._line = self._line, deque()
        for turn in line:
            if not turn.done():
                turn.set_exception(error)

    def _call_next(self) -> None:
        while self._running < self._count and self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                self._running += 1
