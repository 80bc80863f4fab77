"""Run long computations away from the event loop: in processes of this machine, or on Ray."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, ParamSpec, Protocol, TypeVar

from memgrid.errors import DrainingError, UnavailableError
from memgrid_coordinator.heavy import workers

LIMIT = timedelta(minutes=30)
"""The longest a single computation may take."""
_ATTEMPTS = 2

P = ParamSpec("P")
T = TypeVar("T")


class Engine(Protocol):
    """Where heavy functions run. They are plain, repeatable functions over files; arguments are pickled."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result or its own error; UnavailableError when its process died or took too long."""

    async def close(self, drain: timedelta) -> None:
        """Take nothing more, let what runs finish for that long, then end it. Idempotent."""


class InlineEngine:
    """Processes of this machine, started when first needed.

    Processes rather than threads: planning imports transformers and holds the interpreter for seconds, in which
    no lease would be renewed; and a check of a stranger's file can at worst take its own process down.
    """

    def __init__(self, *, processes: int | None = None, limit: timedelta = LIMIT) -> None:
        self._processes = processes or max(1, (os.cpu_count() or 2) // 2)
        self._limit_s = limit.total_seconds()
        self._context = _Children()
        self._pool: ProcessPoolExecutor | None = None
        self._futures: set[Future[Any]] = set()
        self._closing = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(_ATTEMPTS):
            if self._closing:
                break
            pool = self._pool_now()
            try:
                return await self._result(pool.submit(workers.call, self._limit_s, function, args, kwargs))
            except BrokenProcessPool:
                # A sibling may have died in our place; functions are repeatable, so each gets a second process.
                self._discard(pool)
        if self._closing:
            raise DrainingError(f"{_name(function)}: the coordinator is stopping")
        raise UnavailableError(f"{_name(function)}: its process died {_ATTEMPTS} times, perhaps for want of memory")

    async def close(self, drain: timedelta) -> None:
        self._closing = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        running = [future for future in list(self._futures) if not future.cancel()]
        pool.shutdown(wait=False)
        await asyncio.to_thread(wait, running, drain.total_seconds())
        self._context.kill_all()

    async def _result(self, future: Future[T]) -> T:
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not our task was cancelled, but the queued call, by `close`.
            raise DrainingError("the coordinator is stopping") from None

    def _pool_now(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                max_workers=self._processes, mp_context=self._context, initializer=workers.begin
            )
        return self._pool

    def _discard(self, broken: ProcessPoolExecutor) -> None:
        if self._pool is broken:
            self._pool = None
        broken.shutdown(wait=False, cancel_futures=True)


class _Children(SpawnContext):
    """Starts processes and remembers them, because an executor can't end one that runs."""

    def __init__(self) -> None:
        super().__init__()
        self._started: weakref.WeakSet[SpawnProcess] = weakref.WeakSet()

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **kwargs)
        self._started.add(process)
        return process

    def kill_all(self) -> None:
        for process in list(self._started):
            if process.is_alive():
                process.kill()


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
