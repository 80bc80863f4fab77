"""The donor's cluster while a volunteer runs: machines come and go, and their devices with them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

from memgrid.clock import Clock
from memgrid.errors import InvalidError, MemgridError
from memgrid.log import get_logger
from memgrid.units import HostFacts
from memgrid.wire import DEVICES_MAX
from memgrid_volunteer.cluster.facts import facts_of, platform_here
from memgrid_volunteer.cluster.names import NodeName, node_name, pauses_on, preferences_on, preferences_text
from memgrid_volunteer.cluster.node import Node
from memgrid_volunteer.cluster.words import Call, Found, Greeting, Nodes, TaskName, Terms, Wanted
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.loops import together
from memgrid_volunteer.machine import Workers
from memgrid_volunteer.ruling import Ruled
from memgrid_volunteer.workbench import Workbench

LOOK_EVERY_S = 2.0
OPEN_LIMIT_S = 300.0
"""For a station to start: its machine loads Python, and a worker there torch."""
FIRST_REST_S = 5.0
REST_MAX_S = 300.0
"""Until a machine that is there and does not work is tried again, longer every time."""

log = get_logger(__name__)


class Cluster:
    """Machines beside this one; `joined` adds how they stand, `run` takes them up and lets them go."""

    def __init__(
        self, nodes: Nodes, *, own: HostFacts, workers: Workers, cache_bytes: int | None, clock: Clock
    ) -> None:
        self._nodes = nodes
        self._own = own
        self._workers = workers
        self._cache_bytes = cache_bytes
        self._clock = clock
        self._said: Ruled | None = None
        self._is_said = asyncio.Event()
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._gone: dict[str, asyncio.Event] = {}
        """Set for a machine that Ray says is dead."""
        self._names: dict[str, NodeName] = {}
        self._serving: dict[NodeName, Node] = {}
        self._left_out: dict[NodeName, str] = {}
        self._losses: Counter[TaskName] = Counter()

    def joined(self, ruled: Ruled) -> Ruled:
        """What holds on this machine, and on all the others; they hear of what their owner says."""
        former, self._said = self._said, ruled
        if former is None or former.preferences != ruled.preferences or former.signals.pauses != ruled.signals.pauses:
            self._is_said.set()
            for node in self._serving.values():
                node.hear(self._wanted(node.name))
        decisions, devices = dict(ruled.decisions), dict(ruled.signals.devices)
        for node in self._serving.values():
            decisions |= node.decisions
            devices |= node.signals
        return replace(ruled, decisions=decisions, signals=replace(ruled.signals, devices=devices))

    async def run(self, workbench: Workbench, diary: Diary, describe: Callable[[HostFacts], None]) -> None:
        """Loop: see which machines there are, until cancelled; `describe` is told when the host is another."""
        await self._is_said.wait()
        told = self._own
        try:
            while True:
                await self._look(workbench, diary)
                facts = facts_of(self._own, [node.facts for node in self._serving.values()])
                if facts != told:
                    told = facts
                    describe(facts)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            keeping = tuple(self._keeping.values())
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    async def _look(self, workbench: Workbench, diary: Diary) -> None:
        try:
            found = {each.node_id: each for each in await asyncio.to_thread(self._nodes.look)}
        except MemgridError as error:
            log.warning("the cluster does not say which machines it has", error=str(error))
            return
        for node_id, each in found.items():
            if node_id not in self._keeping:
                self._gone[node_id] = asyncio.Event()
                self._names[node_id] = node_name(each.host, self._names.values())
                self._keeping[node_id] = asyncio.create_task(self._keep(each, workbench, diary))
        for node_id, task in list(self._keeping.items()):
            if task.done():
                task.result()  # a bug ends the run
                del self._keeping[node_id], self._gone[node_id], self._names[node_id]
            elif node_id not in found:
                self._gone[node_id].set()

    async def _keep(self, found: Found, workbench: Workbench, diary: Diary) -> None:
        """One machine from when it is seen until it has left; whatever goes wrong, it is tried again."""
        name, gone, failures, told = self._names[found.node_id], self._gone[found.node_id], 0, ""
        while not gone.is_set():
            began_s, why = self._clock.monotonic_s(), ""
            try:
                await self._serve(found, workbench, diary)
            except MemgridError as error:
                why = str(error)
            if gone.is_set():
                break
            failures = 1 if self._clock.monotonic_s() - began_s > REST_MAX_S else failures + 1
            if why != told:
                told = why
                diary.tell(f"{name}: {why}")
            self._leave_out(name, why, diary)
            await together(gone.wait(), asyncio.sleep(min(FIRST_REST_S * 2 ** (failures - 1), REST_MAX_S)))
        diary.tell(f"{name}: has left the cluster")
        self._leave_out(name, None, diary)

    async def _serve(self, found: Found, workbench: Workbench, diary: Diary) -> None:
        """Its devices compute until it goes. Raises the MemgridError that ended it before."""
        name = self._names[found.node_id]
        wanted = self._wanted(name)
        terms = Terms(
            version=version("memgrid"),
            platform=platform_here(),
            workers=self._workers,
            wanted=wanted,
            cache_bytes=self._cache_bytes,
        )
        call = await asyncio.to_thread(self._nodes.begin, found, terms)
        try:
            greeting: Greeting = await call("open", limit_s=OPEN_LIMIT_S)
            self._check_room(len(greeting.devices))
            node = Node(name, call, greeting, wanted, self._clock, self._losses)
            await node.look()
            self._leave_out(name, None, diary)
            names = ", ".join(bench.device_id for bench in node.benches)
            diary.tell(f"{name}: computes too, with {names}; isolation {greeting.facts.isolation}")
            await self._use(node, call, found, workbench, diary)
        finally:
            self._nodes.end(call)

    async def _use(self, node: Node, call: Call, found: Found, workbench: Workbench, diary: Diary) -> None:
        self._serving[node.name] = node
        node.hear(self._wanted(node.name))
        for bench in node.benches:
            diary.device_came(bench.device)
            workbench.add(bench)
        try:
            await together(self._gone[found.node_id].wait(), node.listen(), node.tell())
        finally:
            del self._serving[node.name]
            node.end()
            # Who waits for an answer from there hears now that there will be none.
            self._nodes.end(call)
            current = asyncio.current_task()
            # While the volunteer stops, it ends all benches itself, and shows them as they were.
            if current is None or not current.cancelling():
                for bench in node.benches:
                    await workbench.remove(bench)
                    diary.device_left(bench.device_id)

    def _check_room(self, devices: int) -> None:
        others = [self._own, *(node.facts for node in self._serving.values())]
        if sum(len(facts.devices) for facts in others) + devices > DEVICES_MAX:
            raise InvalidError(f"a host has {DEVICES_MAX} devices at the most, with it there would be more")

    def _leave_out(self, name: NodeName, why: str | None, diary: Diary) -> None:
        self._left_out.pop(name, None)
        if why is not None:
            self._left_out[name] = why
        diary.machines_left_out(self._left_out)

    def _wanted(self, name: NodeName) -> Wanted:
        assert self._said is not None
        preferences = preferences_text(preferences_on(name, self._said.preferences))
        return Wanted(preferences=preferences, pauses=pauses_on(name, self._said.signals.pauses))
