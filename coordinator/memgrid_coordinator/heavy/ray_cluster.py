"""A Ray cluster as the engine sees it: how to reach it, which nodes may work, and how many processors they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memgrid.errors import InvalidError
from memgrid.log import get_logger
from memgrid.ray_connection import connected, disconnect, line_of
from memgrid_coordinator.heavy import ray_node
from memgrid_coordinator.heavy.ray_node import Terms, Unfit

log = get_logger(__name__)
_PROBE_S = 60.0
"""How long a node may take to say whether it is fit; the first process there has to load Python and Ray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster that lives."""

    node_id: str
    name: str
    cpus: int


class RayCluster:
    """A connection to Ray; a process can have one at a time. Its calls may block for as long as the network does."""

    def __init__(self, address: str, *, terms: Terms, cpus: int | None = None) -> None:
        """Connect; raises InvalidError or UnavailableError in one line, also when no node is fit to work."""
        self.ray = connected(address, extra="coordinator", may_start=True, cpus=cpus)
        self._terms = terms
        self._task = self.ray.remote(num_cpus=1, max_retries=0)(ray_node.call)
        self._left_out: dict[str, str] = {}
        """Nodes that get no work, and why."""
        self._nodes: tuple[Node, ...] = ()
        try:
            self.look()
            self._probe()
            if self.cpus == 0:
                raise InvalidError(f"ray: {address}: no node can work: {self.complaints}")
        except BaseException:
            self.close()
            raise

    @property
    def cpus(self) -> int:
        """Processors of the nodes that may work, when `look` was last called."""
        return sum(node.cpus for node in self._nodes if node.node_id not in self._left_out)

    @property
    def complaints(self) -> str:
        """What is wrong with the nodes that may not work."""
        return "; ".join(self._left_out.values()) or "none has a processor"

    def look(self) -> None:
        """See which nodes there are now."""
        found = tuple(
            Node(
                node_id=node["NodeID"],
                name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
                cpus=int(node["Resources"].get("CPU", 0)),
            )
            for node in self.ray.nodes()
            if node["Alive"]
        )
        if {node.node_id for node in found} != {node.node_id for node in self._nodes}:
            log.info("nodes of the Ray cluster", nodes=len(found), cpus=sum(node.cpus for node in found))
        self._nodes = found

    def submit(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """A reference to the call's result, which is an Unfit if it fell to a node that can't do it."""
        options: dict[str, Any] = {"name": name}
        if self._left_out:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self._left_out)})"}
        return self._task.options(**options).remote(self._terms, function, args, kwargs)

    def cancel(self, reference: Any) -> None:
        """End a call, and the process that runs it."""
        self.ray.cancel(reference, force=True)

    def leave_out(self, unfit: Unfit) -> None:
        """Give a node no more work, and say why; it takes a new start of Ray there to be looked at again."""
        name = next((node.name for node in self._nodes if node.node_id == unfit.node_id), unfit.node_id)
        if unfit.node_id not in self._left_out:
            self._left_out[unfit.node_id] = f"{name} {unfit.why}"
            log.warning("a node of the Ray cluster gets no work", node=name, why=unfit.why)

    def close(self) -> None:
        disconnect(self.ray)

    def _probe(self) -> None:
        """Ask every node whether it is fit, all at once."""
        asked = {
            self._task.options(num_cpus=0, label_selector={"ray.io/node-id": node.node_id}).remote(
                self._terms, ray_node.nothing, (), {}
            ): node
            for node in self._nodes
            if node.cpus
        }
        answered, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_S)
        for reference in answered:
            if (why := self._why_unfit(reference)) is not None:
                self.leave_out(Unfit(node_id=asked[reference].node_id, why=why))
        for reference in silent:
            self.cancel(reference)
            self.leave_out(Unfit(node_id=asked[reference].node_id, why=f"did not answer in {_PROBE_S:g} s"))

    def _why_unfit(self, reference: Any) -> str | None:
        try:
            found = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            return f"has no memgrid[coordinator] of the coordinator's version: {line_of(error.cause)}"
        except self.ray.exceptions.RayError as error:
            return f"can't run anything: {line_of(error)}"
        return found.why if isinstance(found, Unfit) else None
