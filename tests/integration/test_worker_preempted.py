"""A worker killed in the middle of a unit of each kind: the next one goes on, and the same bytes come out."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from memgrid.units import ReasonCode
from memgrid_volunteer.isolation import Folders, Isolation
from memgrid_volunteer.kinds.committed import COMMITTED_FILE
from memgrid_volunteer.kinds.job import Outcome, Progress
from memgrid_volunteer.sandbox import Sandbox
from tests.half_done import KINDS, Unit, make_unit
from tests.studies import Studied, make_studied
from tests.warm import warm_processes

LIMIT_S = 60


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with warm_processes(tmp_path_factory.mktemp("warm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    return make_studied(tmp_path_factory.mktemp("preempted") / "tiny")


@pytest.fixture
def sandbox(warm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name, value in warm.items():
        monkeypatch.setenv(name, value)
    folders = Folders(cache=tmp_path / "cache", work=tmp_path / "work")
    for folder in (folders.cache, folders.work):
        folder.mkdir()
    return Sandbox(folders, threads=1, module="tests.workers.committing", isolation=Isolation.NONE, device_id="cpu")


async def committed(unit: Unit, running: asyncio.Task[Outcome]) -> None:
    """Wait until something of the running unit is on disk."""
    async with asyncio.timeout(LIMIT_S):
        while not (unit.job.out_dir / COMMITTED_FILE).exists():
            assert not running.done(), "it was through before anything was committed"
            await asyncio.sleep(0.01)


async def killed_half_way(sandbox: Sandbox, unit: Unit) -> None:
    """Slow it down until something is committed, hold it, and kill it."""
    await sandbox.start()
    assert sandbox.pid is not None
    worker = psutil.Process(sandbox.pid)
    sandbox.pace(0.1)
    running = asyncio.create_task(sandbox.run(unit.job))
    await committed(unit, running)
    sandbox.pace(0.0)
    await asyncio.sleep(0)
    await sandbox.kill()
    sandbox.pace(1.0)
    outcome = await asyncio.wait_for(running, LIMIT_S)
    assert outcome.failure is not None and outcome.failure.code is ReasonCode.OWNER_PAUSED
    assert not worker.is_running()
    assert not (unit.job.out_dir / "sketch.safetensors").exists()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_killed_goes_on_to_the_same_bytes(
    kind: str, sandbox: Sandbox, grid: Studied, tmp_path: Path
) -> None:
    # The real worker reads 2,048 tokens of so small a model at once.
    unit = make_unit(kind, grid, tmp_path / "unit", tokens=4200)
    calm = make_unit(kind, grid, tmp_path / "calm", tokens=4200)
    try:
        outcome = await sandbox.run(calm.job)
        assert outcome.facts is not None and outcome.utilisation is not None and 0 < outcome.utilisation < 2
        await killed_half_way(sandbox, unit)
        # Where the supervisor moves it: another folder, another process.
        shutil.move(unit.job.out_dir, tmp_path / "kept")
        shutil.move(tmp_path / "kept", unit.job.out_dir)
        told: list[Progress] = []
        outcome = await sandbox.run(unit.job, told.append)
        assert outcome.facts is not None
        assert unit.outputs() == calm.outputs()
        assert told[0].done > 0 and told[-1].done == 1.0
    finally:
        await sandbox.kill()


async def test_a_held_worker_ends_with_its_supervisors_pipe(sandbox: Sandbox, grid: Studied, tmp_path: Path) -> None:
    await sandbox.start()
    assert sandbox.pid is not None and sandbox._process is not None and sandbox._process.stdin is not None
    unit = make_unit("train", grid, tmp_path / "unit")
    sandbox.pace(0.02)
    running = asyncio.create_task(sandbox.run(unit.job))
    await committed(unit, running)
    sandbox.pace(0.0)
    worker = psutil.Process(sandbox.pid)
    sandbox._process.stdin.close()
    await asyncio.to_thread(worker.wait, LIMIT_S)
    outcome = await asyncio.wait_for(running, LIMIT_S)
    assert outcome.failure is not None
    await sandbox.kill()
