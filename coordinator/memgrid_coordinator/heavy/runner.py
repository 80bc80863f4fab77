"""Run long computations away from the event loop: in processes of this machine, or on Ray."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from typing import Any, ParamSpec, Protocol, TypeVar

from memgrid.errors import DrainingError, UnavailableError
from memgrid_coordinator.heavy.lane import Lane
from memgrid_coordinator.heavy.slots import Load, Slots

LIMIT = timedelta(minutes=30)
"""The longest a single computation may take."""
DEATHS_MAX = 2
"""How many processes may die under one call: functions are repeatable, and one death may have been chance."""

P = ParamSpec("P")
T = TypeVar("T")


class Engine(Protocol):
    """Where heavy functions run. They are plain, repeatable functions over files; arguments are pickled.

    Only so many run at once, first come, first served. What waits is kept as it was given, neither pickled nor sent.
    """

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result or its own error; UnavailableError when its process died or took too long.

        Cancelling this takes the call out of the line, or interrupts it if it runs.
        """

    @property
    def load(self) -> Load:
        """How many calls run and wait."""

    async def close(self, drain: timedelta) -> None:
        """Take nothing more, let what runs finish for that long, then end it. Idempotent."""


class InlineEngine:
    """Processes of this machine, started when first needed.

    Processes rather than threads: planning imports transformers and holds the interpreter for seconds, in which
    no lease would be renewed; and a check of a stranger's file can at worst take its own process down.
    """

    def __init__(self, *, processes: int | None = None, limit: timedelta = LIMIT) -> None:
        count = processes or max(1, (os.cpu_count() or 2) // 2)
        self._slots = Slots(count)
        self._lanes = [Lane(limit.total_seconds()) for _ in range(count)]
        self._idle = list(reversed(self._lanes))
        self._running: set[asyncio.Future[Any]] = set()
        self._is_closing = False

    @property
    def load(self) -> Load:
        return self._slots.load

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._refuse_when_closing(function)
        await self._slots.take()
        lane = self._take_lane()
        try:
            return await self._in_lane(lane, function, args, kwargs)
        finally:
            self._idle.append(lane)
            self._slots.give_back()

    async def close(self, drain: timedelta) -> None:
        self._is_closing = True
        self._slots.refuse(DrainingError("the coordinator is stopping"))
        if self._running:
            await asyncio.wait(self._running, timeout=drain.total_seconds())
        for lane in self._lanes:
            lane.kill()

    def _take_lane(self) -> Lane:
        """The one used last, whose process has loaded what it needs; but none that still winds up."""
        lane = next((lane for lane in reversed(self._idle) if not lane.is_busy), self._idle[-1])
        self._idle.remove(lane)
        return lane

    async def _in_lane(
        self, lane: Lane, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        ended = asyncio.get_running_loop().create_future()
        self._running.add(ended)
        try:
            for _ in range(DEATHS_MAX):
                self._refuse_when_closing(function)
                try:
                    return await lane.call(function, args, kwargs)
                except BrokenProcessPool:
                    lane.discard()
            self._refuse_when_closing(function)
            raise UnavailableError(died(function))
        finally:
            self._running.discard(ended)
            ended.set_result(None)

    def _refuse_when_closing(self, function: Callable[..., Any]) -> None:
        if self._is_closing:
            raise DrainingError(f"{name_of(function)}: the coordinator is stopping")


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called in messages and metrics."""
    return getattr(function, "__name__", repr(function))


def died(function: Callable[..., Any]) -> str:
    """The line about a function under which too many processes died."""
    return f"{name_of(function)}: its process died {DEATHS_MAX} times, perhaps for want of memory"
