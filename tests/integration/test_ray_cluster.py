"""A cluster of two nodes on this machine: one of them is killed in the middle of a campaign, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from memgrid.endpoint import GridEndpoint
from memgrid.errors import DrainingError, InvalidError, UnavailableError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.heavy.ray_engine import RayEngine
from memgrid_coordinator.heavy.slots import Load
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.store import campaigns
from tests.grids import (
    campaign_of,
    eventually,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
)
from tests.integration import heavy_functions

DRAIN = timedelta(seconds=20)
FOR_EVER_S = 100_000.0
STORE_BYTES = 80 << 20
NOTICES_SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 200,
    "health_check_failure_threshold": 3,
}
"""What is gone refuses to be asked; what is only slow has the usual ten seconds to answer."""
TEXTS = {f"manual-{number}.txt": f"Manual {number}. " + "The valve opens at three bar. " * 6 for number in range(3)}


class Nodes:
    """A real Ray cluster whose nodes are processes of this machine; the first has one processor."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_system_config": NOTICES_SOON,
            },
        )

    @property
    def address(self) -> str:
        found: str = self.cluster.address
        return found

    @contextlib.contextmanager
    def another(self, folder: Path | None = None) -> Iterator[Any]:
        """A second node with one processor, perhaps in another working folder; killed at the end, if not before."""
        with contextlib.chdir(folder or Path.cwd()):
            node = self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            self.cluster.wait_for_nodes()
        try:
            yield node
        finally:
            self.kill(node)

    def kill(self, node: Any) -> None:
        """All of its processes at once, as a power cut does it."""
        if node in self.cluster.worker_nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in [raylet, *raylet.children(recursive=True)]:
                process.kill()
            self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(ray_surroundings: Path) -> Iterator[Nodes]:
    started = Nodes()
    yield started
    started.cluster.shutdown()


@contextlib.asynccontextmanager
async def engine_of(nodes: Nodes, folder: Path, **options: Any) -> AsyncIterator[RayEngine]:
    engine = RayEngine(nodes.address, folders=(folder,), **options)
    try:
        yield engine
    finally:
        await engine.close(DRAIN)


async def test_a_node_killed_in_mid_campaign_loses_nothing(
    nodes: Nodes, tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    async with running_coordinator(tmp_path / "calm") as grid:
        calm = await cubes(grid, tiny_model_folder, geometry)
    with nodes.another() as node:
        async with running_coordinator(tmp_path / "stormy", ray=nodes.address) as grid:
            stormy = await cubes(grid, tiny_model_folder, geometry, Storm(nodes, node, grid[0], tmp_path))
    assert stormy == calm and len(calm) == len(TEXTS)


async def cubes(
    grid: tuple[Coordinator, GridEndpoint], model: Path, geometry: ModelGeometry, storm: Storm | None = None
) -> dict[str, str | None]:
    """The cubes of a campaign, by document; all that two honest hosts computed has counted."""
    coordinator, endpoint = grid
    await push_model(coordinator, model)
    submission = await submit(coordinator, TEXTS)
    async with simulated_hosts(endpoint, 2) as hosts:
        working = run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
        await asyncio.gather(working, *([storm.break_out(submission)] if storm else []))
    campaign = await campaign_of(coordinator, submission)
    units = sum(campaign.units_by_state.values())
    assert campaign.state is CampaignState.COMPLETED
    assert (campaign.units_by_state, campaign.reports_by_verdict) == ({"accepted": units}, {"agreed": 2 * units})
    documents = await coordinator.store.read(lambda it: campaigns.documents_of(it, campaign.campaign_id))
    return {document.name: document.cube_digest for document in documents}


class Storm:
    """Kills a node while both are at work, more is waiting, and the campaign is half done."""

    def __init__(self, nodes: Nodes, node: Any, coordinator: Coordinator, folder: Path) -> None:
        self._nodes = nodes
        self._node = node
        self._coordinator = coordinator
        self._folder = folder

    async def break_out(self, submission: Any) -> None:
        engine, gate = self._coordinator.engine, self._folder / "gate"

        async def is_begun() -> bool:
            return "accepted" in (await campaign_of(self._coordinator, submission)).units_by_state

        async def is_full() -> bool:
            return engine.load.waiting > 0 and len(self._begun()) == 2

        await eventually(is_begun)
        calls = [
            asyncio.create_task(engine.run(heavy_functions.mark_and_wait_for, self._folder, name, gate))
            for name in ("one", "two")
        ]
        await eventually(is_full)
        assert (engine.load.running, engine.load.slots) == (2, 2)
        (lost,) = [name for name, node_id in self._begun() if node_id == self._node.node_id]
        self._nodes.kill(self._node)
        gate.touch()
        assert await asyncio.gather(*calls) == ["one", "two"]
        again = sorted(name for name, _ in self._begun())
        assert again == sorted(["one", "two", lost]), "the call of the lost node was made again, no other"

    def _begun(self) -> list[tuple[str, str]]:
        """Each call that has begun, and on which node."""
        return [(path.name.split("-")[0], path.read_text()) for path in self._folder.glob("*-*-*[0-9]")]


async def test_there_is_as_much_room_as_there_are_processors_now(nodes: Nodes, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with engine_of(nodes, tmp_path) as engine:
        assert engine.load == Load(running=0, waiting=0, slots=1)
        calls = [
            asyncio.create_task(engine.run(heavy_functions.mark_and_wait_for, tmp_path, f"call{number}", gate))
            for number in range(4)
        ]
        await eventually(load_is(engine, running=1, waiting=3, slots=1))
        with nodes.another():
            await eventually(load_is(engine, running=2, waiting=2, slots=2))
        await eventually(load_is(engine, running=2, waiting=2, slots=1))
        gate.touch()
        assert await asyncio.gather(*calls) == ["call0", "call1", "call2", "call3"]


async def test_a_node_that_does_not_see_the_data_folder_gets_no_work_and_is_named(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On one machine all nodes see the same folders, but for this one: it is another one for each working folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    here = Path("/proc/self/cwd")
    with nodes.another(tmp_path) as fit, nodes.another(elsewhere) as unfit:
        async with engine_of(nodes, here) as engine:
            ran_on = [await engine.run(heavy_functions.node_id) for _ in range(4)]
    assert set(ran_on) == {fit.node_id}
    assert unfit.node_id not in ran_on
    said = [line for line in capfd.readouterr().err.splitlines() if "gets no work" in line]
    assert len(said) == 2, "one of each that works in another folder"
    assert all("does not see the coordinator's /proc/self/cwd" in line for line in said)


async def test_a_node_that_loses_sight_of_the_folder_gets_no_more_work(nodes: Nodes, tmp_path: Path) -> None:
    async with engine_of(nodes, tmp_path) as engine:
        assert await engine.run(heavy_functions.add, 1, other=1) == 2
        await asyncio.to_thread(spoil_marks, tmp_path)
        with pytest.raises(UnavailableError, match=f"no node can work: .* does not see the coordinator's {tmp_path}"):
            await engine.run(heavy_functions.add, 1, other=1)


def test_a_cluster_of_nodes_that_see_nothing_is_refused_in_one_line(nodes: Nodes, tmp_path: Path) -> None:
    unseen = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    folder = Path(f"/proc/self/fd/{unseen}")  # a folder of this process alone
    with pytest.raises(
        InvalidError, match=r"^ray: .*: no node can work: .* does not see the coordinator's /proc"
    ) as no:
        RayEngine(nodes.address, folders=(folder,))
    os.close(unseen)
    assert "\n" not in str(no.value)


async def test_what_takes_too_long_is_ended(nodes: Nodes, tmp_path: Path) -> None:
    async with engine_of(nodes, tmp_path, limit=timedelta(seconds=5)) as engine:
        with pytest.raises(UnavailableError, match="mark_and_wait: took longer than 5 s"):
            await engine.run(heavy_functions.mark_and_wait, tmp_path / "mark", FOR_EVER_S)
        assert await engine.run(heavy_functions.add, 1, other=1) == 2


async def test_close_ends_what_runs_and_refuses_what_waits(nodes: Nodes, tmp_path: Path) -> None:
    engine = RayEngine(nodes.address, folders=(tmp_path,))
    calls = [
        asyncio.create_task(engine.run(heavy_functions.mark_and_wait, tmp_path / f"mark{number}", FOR_EVER_S))
        for number in range(2)
    ]

    async def runs() -> bool:
        return (tmp_path / "mark0").exists()

    await eventually(runs)
    await engine.close(timedelta(0))
    for call in calls:
        with pytest.raises(DrainingError):
            await call
    with pytest.raises(DrainingError):
        await engine.run(heavy_functions.pid)


def test_the_command_finds_a_cluster_by_its_address_and_this_machines_token(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # as in life, where a file in the home folder has it
        monkeypatch.delenv(name)
    memgrid = Path(sys.executable).with_name("memgrid")
    words = [memgrid, "coordinator", "serve", "--data", tmp_path, "--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen([*words, "--ray", nodes.address], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "memgrid volunteer join" in process.stdout.readline()
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0


def spoil_marks(folder: Path) -> None:
    for mark in folder.glob(".ray-*"):
        mark.write_text("another folder")


def load_is(engine: RayEngine, **expected: int) -> Any:
    async def is_so() -> bool:
        return engine.load == Load(**expected)

    return is_so
