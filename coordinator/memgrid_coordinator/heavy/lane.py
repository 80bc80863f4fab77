"""One process of this machine that runs one function after another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from memgrid_coordinator.heavy import workers

T = TypeVar("T")


class Lane:
    """Starts its process when first needed. One call at a time, so that a death is laid at the right door.

    A pool of several processes falls with any of them, and can't say under which call.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._child = _Child()
        self._executor: ProcessPoolExecutor | None = None
        self._last: Future[Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a call runs, perhaps one that nobody waits for any more."""
        return self._last is not None and not self._last.done()

    async def call(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """The function's result or error; BrokenProcessPool when its process died.

        Whoever cancels this interrupts the function.
        """
        if self._last is not None and not self._last.done():
            await asyncio.wait([asyncio.wrap_future(self._last)])
        future = self._ready().submit(workers.call, self._limit_s, function, args, kwargs)
        self._last = future
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done():
                self._child.interrupt()
            raise

    def discard(self) -> None:
        """Let go of a process that has died; the next call gets another."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    def kill(self) -> None:
        self._child.kill()
        self.discard()

    def _ready(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(max_workers=1, mp_context=self._child, initializer=workers.begin)
        return self._executor


class _Child(SpawnContext):
    """Starts a process and remembers it, because an executor can't interrupt or end one that runs."""

    def __init__(self) -> None:
        super().__init__()
        self._process: SpawnProcess | None = None

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        self._process = SpawnProcess(*args, **kwargs)
        return self._process

    def interrupt(self) -> None:
        """Let the function that runs find its time over; the process lives on, with all that it has loaded."""
        process = self._process
        if process is None or process.pid is None or not process.is_alive():
            return
        if hasattr(signal, "SIGALRM"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGALRM)
        else:
            process.kill()

    def kill(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.kill()
