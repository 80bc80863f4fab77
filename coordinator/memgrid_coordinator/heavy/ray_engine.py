"""Run long computations on a Ray cluster, or on a Ray of this machine's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from memgrid.errors import DrainingError, UnavailableError
from memgrid.log import get_logger
from memgrid.ray_connection import line_of
from memgrid_coordinator.heavy.ray_cluster import RayCluster
from memgrid_coordinator.heavy.ray_node import Terms, Unfit
from memgrid_coordinator.heavy.runner import DEATHS_MAX, LIMIT, died, name_of
from memgrid_coordinator.heavy.slots import Load, Slots

log = get_logger(__name__)
_LOSSES_MAX = 5
"""How many nodes may go down under one call: that is not its fault, but something is wrong."""
_LOOK_EVERY_S = 2.0
_CANCEL_S = 5.0

P = ParamSpec("P")
T = TypeVar("T")


class RayEngine:
    """Each call is one Ray task of one CPU; so many are with Ray as it has processors for, the others wait here.

    Functions read and write files by path, so on more than one machine the coordinator's folders have to be shared
    ones, under the same paths everywhere. Nodes that do not see them get no work.
    """

    def __init__(
        self, address: str, *, folders: Iterable[Path] = (), cpus: int | None = None, limit: timedelta = LIMIT
    ) -> None:
        """Connect to Ray, which takes some seconds; raises InvalidError or UnavailableError saying why not.

        `auto`: the cluster this machine belongs to, else a new one on this machine; `local`: always a new one,
        of `cpus`; anything else is a cluster's address. `folders` are what every node has to see.
        """
        self._cluster = RayCluster(address, terms=Terms.of(folders), cpus=cpus)
        self._limit_s = limit.total_seconds()
        self._slots = Slots(self._cluster.cpus)
        self._looking: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Future[Any], Any] = {}
        """What Ray is asked for, with Ray's own references."""
        self._is_closing = False

    @property
    def load(self) -> Load:
        return self._slots.load

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self._refuse_when_closing(function)
        self._keep_looking()
        await self._slots.take()
        try:
            return await self._attempts(function, args, kwargs)
        finally:
            self._slots.give_back()

    async def close(self, drain: timedelta) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._slots.refuse(DrainingError("the coordinator is stopping"))
        if self._running:
            await asyncio.wait(self._running, timeout=drain.total_seconds())
        for reference in self._running.values():
            self._cluster.cancel(reference)
        if self._running:  # nothing would ever answer them once the connection is gone
            await asyncio.wait(self._running, timeout=_CANCEL_S)
        if self._looking is not None:
            self._looking.cancel()
        self._cluster.close()

    async def _attempts(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Ray itself retries nothing: under a function that wants too much memory it would kill one after another."""
        errors = self._cluster.ray.exceptions
        deaths = losses = 0
        while deaths < DEATHS_MAX and losses < _LOSSES_MAX:
            self._refuse_when_closing(function)
            try:
                found = await self._once(function, args, kwargs)
            except (errors.WorkerCrashedError, errors.OutOfMemoryError):
                deaths += 1
            except (errors.NodeDiedError, errors.ObjectLostError) as error:
                losses += 1
                log.warning("a node was lost; its call is made again", call=name_of(function), error=line_of(error))
            except errors.RayError as error:
                self._refuse_when_closing(function)
                raise UnavailableError(f"{name_of(function)}: {line_of(error)}") from None
            else:
                if not isinstance(found, Unfit):
                    return found
                self._leave_out(found)
        self._refuse_when_closing(function)
        raise UnavailableError(
            died(function) if deaths == DEATHS_MAX else f"{name_of(function)}: its node went down {losses} times"
        )

    async def _once(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T | Unfit:
        """One attempt; raises the function's own error, or Ray's."""
        reference = self._cluster.submit(name_of(function), function, args, kwargs)
        future: asyncio.Future[T | Unfit] = asyncio.wrap_future(reference.future())
        self._running[future] = reference
        try:
            async with asyncio.timeout(self._limit_s):
                return await future
        except self._cluster.ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except TimeoutError:
            self._cluster.cancel(reference)
            raise UnavailableError(f"{name_of(function)}: took longer than {self._limit_s:g} s") from None
        except asyncio.CancelledError:
            self._cluster.cancel(reference)
            raise
        finally:
            del self._running[future]

    def _leave_out(self, unfit: Unfit) -> None:
        self._cluster.leave_out(unfit)
        self._slots.resize(self._cluster.cpus)
        if self._cluster.cpus == 0:
            raise UnavailableError(f"ray: no node can work: {self._cluster.complaints}")

    def _keep_looking(self) -> None:
        """See to it that somebody watches nodes come and go while there is anything to do."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._cluster.look)
            except Exception as error:  # noqa: BLE001 - Ray has many for a connection that is gone
                log.warning("the Ray cluster does not say which nodes it has", error=line_of(error))
            # With no node left one call goes to Ray all the same: there it waits for a node, and has its limit.
            self._slots.resize(max(1, self._cluster.cpus))
            await asyncio.sleep(_LOOK_EVERY_S)
            load = self._slots.load
            if load.running + load.waiting == 0:
                return

    def _refuse_when_closing(self, function: Callable[..., Any]) -> None:
        if self._is_closing:
            raise DrainingError(f"{name_of(function)}: the coordinator is stopping")


def _cause(error: Any) -> BaseException:
    """The error as the function raised it; Ray wraps it in a class of its own."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error
