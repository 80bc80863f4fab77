"""Hosts that speak the real protocol and really compute what they are asked, in the test's own process."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from memgrid.clock import ManualClock, SystemClock
from memgrid.cube.identity import identity_of_folder
from memgrid.digest import digest_of
from memgrid.endpoint import GridEndpoint
from memgrid.kinds.delta_sketch import delta_sketch_bytes, sketch_states
from memgrid.kinds.train import STATE_FILE
from memgrid.specs import Spec, TrainSpec, parse_spec
from memgrid.testing import SimulatedHost, SimulatedWork
from memgrid.units import LeaseId, LeaseOffer, Output, Reason, Release, ReportClaim
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.lifecycle import CampaignState, UnitState
from memgrid_coordinator.records import Campaign, Document, Lease, Submission, Unit
from memgrid_coordinator.store import campaigns, leases, units
from memgrid_volunteer.kinds.evaluate import Evaluate
from memgrid_volunteer.kinds.job import SKETCH_FILE, Job
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.kinds.study import Study
from memgrid_volunteer.kinds.train import Train
from memgrid_volunteer.numerics import find_devices
from memgrid_volunteer.outputs import output_names
from tests.grids import campaign_of, eventually, push_model, running_coordinator, submit

TEXT = " ".join(f"Valve {number} opens at {number * 7 % 11} bar; see page {number * 13}." for number in range(12))
DISTILL: dict[str, Any] = {
    "adapter": {"kind": "prefix", "virtual_tokens": 8},
    "study": {
        "chunk_tokens": 1024,
        "conversations": 8,
        "held_out": 4,
        "conversations_per_unit": 4,
        "question_tokens": 8,
        "answer_tokens": 8,
        "top_k": 8,
        "temperature": 1.0,
    },
    "train": {"steps": 6, "batch_rows": 2, "row_tokens": 64, "steps_per_unit": 3, "segment_steps": 2},
    "quality": {"min_gap_closed": -10},
    "items_per_evaluation": 3,
    "compute_dtype": "float32",
}

Change = Callable[[Spec], Spec]
"""What a cheat computes instead of what it was asked."""
Spoil = Callable[[Spec, Path, Path], bool]
"""What a cheat does to its output folder, the second one, before it reports; whether it did anything."""


def distill(**changed: Any) -> dict[str, Any]:
    """The parameters of a tiny campaign; keywords change parts of them."""
    return {
        name: {**part, **changed.get(name, {})} if isinstance(part, dict) else part for name, part in DISTILL.items()
    }


def rounds(**changed: Any) -> dict[str, Any]:
    """The same in two rounds of three members; keywords change how they are made."""
    train = {name: value for name, value in DISTILL["train"].items() if name != "steps_per_unit"}
    made = {"members": 3, "local_steps": 2, "enough": 1.0, "wait_s": 0, **changed}
    return {**DISTILL, "train": {**train, "steps": 4, "mode": "rounds", "rounds": made}}


def honestly(spec: Spec) -> Spec:
    return spec


def as_computed(spec: Spec, inputs: Path, outputs: Path) -> bool:
    return False


@dataclass(slots=True, kw_only=True, eq=False)
class Distiller:
    """One host. `change` or `spoil` makes a cheat of it; `refuses` lets it give back what it is asked."""

    host: SimulatedHost
    coordinator: Coordinator
    model_folder: Path
    folder: Path
    change: Change = honestly
    spoil: Spoil = as_computed
    refuses: Callable[[Spec], Reason | None] = lambda spec: None
    done: dict[LeaseId, dict[str, bytes]] = field(default_factory=dict)

    async def turn(self, *, want: int = 1) -> list[Spec]:
        """One exchange, and the work it brought; returns what was computed."""
        # Not held open: a grid whose clock stands still would never let go.
        answer = await self.host.sync(want=want, awaiting=list(self.done))
        if answer.is_empty:
            await asyncio.sleep(0.1)
        for order in answer.uploads:
            content = self.done[order.lease_id][order.name]
            assert (await self.host.upload(order, content)).status_code == 201
        for verdict in answer.verdicts:
            self.done.pop(verdict.lease_id, None)
        computed = []
        for offer in answer.leases:
            spec = parse_spec(offer.spec)
            if (reason := self.refuses(spec)) is not None:
                await self.host.sync(
                    released=[Release(lease_id=offer.lease_id, fence=offer.fence, reason=reason)],
                )
                continue
            work = await asyncio.to_thread(self.compute, offer)
            await self.host.sync(held=[], work=[work])
            computed.append(spec)
        return computed

    def compute(self, offer: LeaseOffer) -> SimulatedWork:
        """What a real worker makes of a lease."""
        asked = parse_spec(offer.spec)
        spec = self.change(asked)
        unit = self.folder / offer.lease_id
        (unit / "out").mkdir(parents=True)
        for blob in offer.inputs:
            target = unit / "in" / blob.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(self.coordinator.blobs.path_of(blob.digest))
        (unit / "in" / "spec.json").write_bytes(spec.to_bytes())
        device, clock = find_devices()[0], SystemClock()
        runners: dict[str, Any] = {"study": Study, "train": Train, "evaluate": Evaluate}
        told = (device, clock, lambda progress: None)
        runner = Prefill(device, clock) if spec.kind == "prefill" else runners[spec.kind](*told)
        job = Job(kind=spec.kind, unit_dir=unit / "in", model_dir=self.model_folder, out_dir=unit / "out")
        facts = runner.run(job)
        spoilt = self.spoil(asked, unit / "in", unit / "out")
        files = {name: (unit / "out" / name).read_bytes() for name in output_names(offer.spec)}
        sketch = (unit / "out" / SKETCH_FILE).read_bytes()
        if (spoilt or spec != asked) and isinstance(spec, TrainSpec):
            # A clever one: what it reports is at least the sketch of what it will upload.
            geometry = identity_of_folder(self.model_folder).geometry
            start, end = unit / "in" / STATE_FILE, unit / "out" / STATE_FILE
            sketch = delta_sketch_bytes(sketch_states(start, end, spec.adapter, geometry, asked.key))
        shutil.rmtree(unit)
        self.done[offer.lease_id] = files
        claim = ReportClaim(
            lease_id=offer.lease_id,
            fence=offer.fence,
            unit_key=offer.unit_key,
            outputs=tuple(
                Output(name=name, digest=digest_of(content), size_bytes=len(content))
                for name, content in files.items()
            ),
            sketch_digest=digest_of(sketch),
            facts=facts,
        )
        return SimulatedWork(claim=claim, sketch=sketch, content=b"")


@asynccontextmanager
async def distillers(
    coordinator: Coordinator, endpoint: GridEndpoint, model_folder: Path, folder: Path, count: int
) -> AsyncIterator[list[Distiller]]:
    """So many of them, of as many accounts, enrolled and logged in."""
    made = [
        Distiller(
            host=SimulatedHost(endpoint=endpoint),
            coordinator=coordinator,
            model_folder=model_folder,
            folder=folder / f"distiller{number}",
        )
        for number in range(count)
    ]
    try:
        for one in made:
            await one.host.enrol()
        yield made
    finally:
        for one in made:
            await one.host.close()


async def work_until(
    check: Callable[[], Any], crew: list[Distiller], *, want: int = 1, limit_s: float = 240.0
) -> None:
    """Let them take turns until `check` answers yes; each turn is `want` leases at the most."""
    async with asyncio.timeout(limit_s):
        while True:
            for one in crew:
                if await check():
                    return
                await one.turn(want=want)


STUDIES = 3
LIMIT_S = 240.0


@dataclass
class Grid:
    """A coordinator with one distillation, and who works on it; the questions are about its first document."""

    coordinator: Coordinator
    submission: Submission
    crew: list[Distiller]

    async def campaign(self) -> Campaign:
        return await campaign_of(self.coordinator, self.submission)

    async def document(self) -> Document:
        return (await self.campaign()).documents[0]

    async def units(self, kind: str) -> list[Unit]:
        def query(connection: Any) -> list[Unit]:
            document = campaigns.documents_of(connection, self.submission.campaign.campaign_id)[0]
            ids = campaigns.units_of(connection, document.document_id)
            found = units.by_id(connection, ids)
            return [found[unit_id] for unit_id in ids if found[unit_id].kind == kind]

        return await self.coordinator.store.read(query)

    async def leases(self, unit: Unit) -> list[Lease]:
        found = await self.coordinator.store.read(lambda connection: leases.of_units(connection, [unit.unit_id]))
        return found[unit.unit_id]

    async def is_over(self) -> bool:
        return (await self.campaign()).state not in (CampaignState.RUNNING, CampaignState.PAUSED)

    async def finish(self) -> Document:
        await work_until(self.is_over, self.crew)
        return await self.document()

    async def study(self, crew: list[Distiller], members: int = 1) -> None:
        """Until training has been asked for, and before anybody has begun with it."""
        await work_until(self.has("study", UnitState.ACCEPTED, STUDIES), crew)
        await eventually(self.has("train", UnitState.OPEN, members), limit_s=LIMIT_S)

    async def train(self, host: Distiller, count: int) -> None:
        """Until so many train units are accepted, all computed by one host, which takes no more."""
        computed: list[Spec] = []
        while len(computed) < count:
            computed += await host.turn()
        await work_until(self.has("train", UnitState.ACCEPTED, count), [host], want=0)

    def has(self, kind: str, state: UnitState, count: int = 1) -> Callable[[], Awaitable[bool]]:
        """Whether there are so many units of a kind in a state."""

        async def check() -> bool:
            return sum(unit.state is state for unit in await self.units(kind)) >= count

        return check


@asynccontextmanager
async def distilling(
    tmp_path: Path,
    model: Path,
    *,
    hosts: int = 2,
    clock: ManualClock | None = None,
    replays: Engine | None = None,
    texts: dict[str, str] | None = None,
    parameters: dict[str, Any] | None = None,
    **asked: Any,
) -> AsyncIterator[Grid]:
    """A grid with a tiny distillation and so many hosts, who do nothing until they are told."""
    async with AsyncExitStack() as stack:
        coordinator, endpoint = await stack.enter_async_context(
            running_coordinator(
                tmp_path / "data", clock=clock, replays=replays, recover_every=timedelta(milliseconds=200)
            )
        )
        await push_model(coordinator, model)
        given = texts or {"manual.txt": TEXT}
        submission = await submit(coordinator, given, recipe="distill", distill=parameters or distill(), **asked)
        crew = await stack.enter_async_context(distillers(coordinator, endpoint, model, tmp_path, hosts))
        yield Grid(coordinator, submission, crew)


def changed(kind: str, **fields: Any) -> Change:
    """A cheat: units of that kind are computed by another spec."""

    def change(spec: Spec) -> Spec:
        return dataclasses.replace(spec, **fields) if spec.kind == kind else spec

    return change
