"""An engine that tells how long each function took."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import ParamSpec, TypeVar

from memgrid_coordinator.heavy.runner import Engine

P = ParamSpec("P")
T = TypeVar("T")


class MeasuredEngine:
    """Passes everything on; `observe` is given the name of each function and its seconds, waiting included."""

    def __init__(self, engine: Engine, observe: Callable[[str, float], None]) -> None:
        self._engine = engine
        self._observe = observe

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        started = time.perf_counter()
        try:
            return await self._engine.run(function, *args, **kwargs)
        finally:
            self._observe(function.__name__, time.perf_counter() - started)

    async def close(self, drain: timedelta) -> None:
        await self._engine.close(drain)
