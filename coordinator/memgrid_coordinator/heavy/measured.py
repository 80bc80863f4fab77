"""An engine that tells how long each function took."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import ParamSpec, TypeVar

from memgrid.errors import MemgridError, UnavailableError
from memgrid_coordinator.heavy.runner import Engine, name_of
from memgrid_coordinator.heavy.slots import Load

P = ParamSpec("P")
T = TypeVar("T")


class MeasuredEngine:
    """Passes everything on; `observe` is told of each function, its seconds, waiting included, and if it broke."""

    def __init__(self, engine: Engine, observe: Callable[[str, float, bool], None]) -> None:
        self._engine = engine
        self._observe = observe

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        started, failed = time.perf_counter(), False
        try:
            return await self._engine.run(function, *args, **kwargs)
        except UnavailableError:
            failed = True  # its process died, or took too long
            raise
        except MemgridError:
            raise  # what it was given is wrong: finding that out is its work
        except Exception:
            failed = True
            raise
        finally:
            self._observe(name_of(function), time.perf_counter() - started, failed)

    @property
    def load(self) -> Load:
        return self._engine.load

    async def close(self, drain: timedelta) -> None:
        await self._engine.close(drain)
