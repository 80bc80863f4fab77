"""A volunteer across a real Ray cluster: its own machine is the head, and the other node is killed in mid-unit."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from memgrid.errors import InvalidError, UnavailableError
from memgrid_volunteer import running
from memgrid_volunteer.cluster.names import node_name
from memgrid_volunteer.cluster.station import FOLDER_VARIABLE
from memgrid_volunteer.home import Home
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import ALWAYS, Volunteer

STORE_BYTES = 80 << 20
NOTICES_SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 200,
    "health_check_failure_threshold": 3,
}
LONG = (5, 6000)  # two minutes of work, committed every step


class Nodes:
    """A head, which is this machine, and a node with a GPU."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": NOTICES_SOON})
        gpus = folder / "node-devices"
        gpus.write_text("cuda:0=GPU-of-the-node")
        there = {FOLDER_VARIABLE: str(folder / "node"), "NVIDIA_QUICK_DEVICES": str(gpus)}
        self.node: Any = self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, env_vars=there)

    def kill(self) -> None:
        """All of its processes at once, as a power cut does it."""
        raylet = psutil.Process(self.node.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        self.cluster.remove_node(self.node, allow_graceful=False)


@pytest.fixture
def nodes(ray_surroundings: Path, tmp_path: Path) -> Iterator[Nodes]:
    started = Nodes(tmp_path)
    yield started
    started.cluster.shutdown()


@pytest.fixture
async def grid() -> AsyncIterator[ScriptedGrid]:
    grid = ScriptedGrid()
    await grid.start()
    yield grid
    await grid.stop()


async def test_a_node_computes_is_wanted_back_and_is_killed_and_nothing_is_lost(
    nodes: Nodes, grid: ScriptedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volunteer = a_volunteer(grid, tmp_path, monkeypatch)
    volunteer.nodes = partial(running.ray_nodes, nodes.cluster.address)
    here, there = "cpu", f"{node_name(socket.gethostname(), ())}/cuda:0"
    volunteer.control.pause(datetime.now(UTC), device_id=here)
    grid.offer("short", 10, 1)
    async with volunteer.running():
        await grid.until(lambda: "short" in grid.settled)
        assert (nodes.folder / "node" / "cache" / "blobs").is_dir() and "short" in grid.uploads_begun
        long = grid.offer("long", *LONG)
        await grid.until(lambda: share_on(volunteer, there) > 0)
        done = share_on(volunteer, there)
        turn(volunteer, off=there, on=here)
        await grid.until(lambda: share_on(volunteer, here) > 0)
        assert share_on(volunteer, here) >= done, "it goes on from what came back from the node"
        turn(volunteer, off=here, on=there)
        await grid.until(lambda: share_on(volunteer, there) > 0)
        done = share_on(volunteer, here) or done
        nodes.kill()
        await grid.until(lambda: there not in devices(volunteer))
        assert devices(volunteer) == {here}
        assert any(line.startswith(f"{there.partition('/')[0]}: ") for line in volunteer.lines)
        assert not any(" actor " in line or "RpcError" in line for line in volunteer.lines), volunteer.lines
        assert not any("has not answered" in line for line in volunteer.lines)
        volunteer.control.resume(datetime.now(UTC), device_id=here)
        await grid.until(lambda: share_on(volunteer, here) > 0)
        assert share_on(volunteer, here) >= done and volunteer.device(here)["unit"] == long.unit_key
        assert not grid.released


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^ray: 127\.0\.0\.1:1: nobody answers: .*refused$"):
        running.ray_nodes("127.0.0.1:1")
    with pytest.raises(InvalidError, match=r"^ray: expected auto or HOST:PORT, found 'local'$"):
        running.ray_nodes("local")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidError, match=r"^--ray: Ray is not installed: pip install 'memgrid\[volunteer,ray\]'$"):
        running.ray_nodes("auto")


def turn(volunteer: Volunteer, *, off: str, on: str) -> None:
    now = datetime.now(UTC)
    volunteer.control.pause(now, device_id=off)
    volunteer.control.resume(now, device_id=on)


def devices(volunteer: Volunteer) -> set[str]:
    return {device["device_id"] for device in volunteer.home.status()["devices"]}


def share_on(volunteer: Volunteer, device_id: str) -> float:
    return volunteer.progress().get(device_id, 0.0)


def a_volunteer(grid: ScriptedGrid, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Volunteer:
    """With a processor of its own, and the quick worker."""
    (folder / "devices").write_text("cpu=")
    monkeypatch.setenv("NVIDIA_QUICK_DEVICES", str(folder / "devices"))
    home = Home(folder / "volunteer")
    home.make()
    volunteer = Volunteer(home=home, ran=folder / "ran")
    volunteer.join(grid)
    volunteer.prefer(ALWAYS)
    return volunteer
