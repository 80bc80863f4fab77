"""The machines of a Ray cluster, with an actor on each; the only file of the volunteer that is about Ray itself."""

from __future__ import annotations

import asyncio
import contextlib
import platform
from types import TracebackType
from typing import Any

from memgrid.errors import InternalError, MemgridError, UnavailableError
from memgrid.ray_connection import connected, disconnect, line_of
from memgrid_volunteer.cluster.station import Station
from memgrid_volunteer.cluster.words import Call, Found, NodeGoneError, Terms

_LINE_MAX = 300


class RayNodes:
    """Connected as long as its context; a process can have one connection at a time."""

    def __init__(self, address: str) -> None:
        """`auto` is the cluster that this machine belongs to. Raises InvalidError or UnavailableError in one line."""
        self._ray = connected(address, extra="volunteer,ray", may_start=False)
        # From outside of the cluster another machine speaks for us; its node is none of ours.
        is_outside = address.startswith("ray://")
        self._own_id = "" if is_outside else self._ray.get_runtime_context().get_node_id()
        self._own_host = platform.node() if is_outside else ""

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        disconnect(self._ray)

    def look(self) -> tuple[Found, ...]:
        """All that live, but this machine: that has its own supervisor."""
        try:
            nodes = self._ray.nodes()
        except Exception as error:  # noqa: BLE001 - Ray has many for a connection that is gone
            raise UnavailableError(f"ray: {line_of(error)}") from None
        return tuple(
            Found(node_id=node["NodeID"], host=node["NodeManagerHostname"] or node["NodeManagerAddress"])
            for node in nodes
            if node["Alive"] and node["NodeID"] != self._own_id and node["NodeManagerHostname"] != self._own_host
        )

    def begin(self, found: Found, terms: Terms) -> Call:
        """An actor that asks Ray for nothing: the machine's owner decides what it may have, not Ray."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node_id=found.node_id, soft=False)
        actor = self._ray.remote(Station).options(num_cpus=0, max_restarts=0, scheduling_strategy=where).remote(terms)
        return _Actor(self._ray, actor)

    def end(self, call: Call) -> None:
        assert isinstance(call, _Actor)
        call.end()


class _Actor:
    """A station as Ray's actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor

    async def __call__(self, method: str, *args: Any, limit_s: float | None = None) -> Any:
        errors = self._ray.exceptions
        try:
            async with asyncio.timeout(limit_s):
                sent = [
                    await asyncio.to_thread(self._ray.put, arg) if isinstance(arg, bytes) else arg for arg in args
                ]
                return await asyncio.wrap_future(getattr(self._actor, method).remote(*sent).future())
        except errors.RayTaskError as error:
            if isinstance(error.cause, MemgridError):
                raise error.cause from None
            raise InternalError(line_of(error.cause or error)) from None
        except errors.RayError as error:
            raise NodeGoneError(_why(error)) from None
        except TimeoutError:
            raise NodeGoneError(f"did not answer in {limit_s:g} s") from None

    def end(self) -> None:
        with contextlib.suppress(Exception):  # it is gone already, or the whole cluster is
            self._ray.kill(self._actor)


def _why(error: Exception) -> str:
    """What became of an actor that is gone, from what Ray says; of one that never began, the error that it met.

    >>> _why(RuntimeError("The actor 5606 is unavailable: The actor is temporarily unavailable: RpcError: reset"))
    'the connection to it broke'
    >>> _why(RuntimeError("The actor died.\\n\\nThe actor died because its node has died. Node Id: 93ab"))
    'its machine is gone'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in str(error):
        return f"can't run memgrid: {lines[-1][:_LINE_MAX]}"
    if "temporarily unavailable" in str(error):
        return "the connection to it broke"
    if "node has died" in str(error) or "never ran" in str(error):
        return "its machine is gone"
    told = [line for line in lines if line.startswith("The actor ")]
    return f"what ran there has ended: {(told or lines or [type(error).__name__])[-1][:_LINE_MAX]}"
