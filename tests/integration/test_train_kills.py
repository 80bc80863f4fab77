"""A long training on a real volunteer whose worker and whose agent are killed hard: the same bytes come out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import torch

from memgrid.clock import SystemClock
from memgrid.digest import digest_of_file
from memgrid.distill.model import load_model
from memgrid.kinds.train import TrainKind, output_names
from memgrid.specs import TrainSpec
from memgrid.units import AccountId, HostId, LeaseId, LeaseOffer, ModelFiles, ReasonCode
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.kinds.committed import COMMITTED_FILE
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.kinds.train import Train
from memgrid_volunteer.numerics import find_devices
from tests.models import make_tiny_model
from tests.scripted_grid import ScriptedGrid
from tests.training import PREFIX, make_spec, random_shard, random_start, write_inputs

ROOT = Path(__file__).resolve().parents[2]
STEPS = 120


def make_unit(tmp_path: Path, model_folder: Path, grid: ScriptedGrid) -> tuple[TrainSpec, Path]:
    """A unit of many short segments, and the folder of its inputs."""
    model = load_model(model_folder, torch.float32, torch.device("cpu"))
    long = make_spec(stop_step=STEPS, total_steps=STEPS, segment_steps=2, learning_rate=0.02)
    spec, _ = write_inputs(
        tmp_path / "unit" / "in",
        long,
        random_start(PREFIX, model),
        [random_shard(1), random_shard(2)],
        model=grid.model.digest,
    )
    (tmp_path / "unit" / "in" / "spec.json").write_bytes(spec.to_bytes())
    return spec, tmp_path / "unit" / "in"


def offer(grid: ScriptedGrid, name: str, spec: TrainSpec, unit_dir: Path) -> None:
    inputs = tuple(grid._blob(file.name, (unit_dir / file.name).read_bytes()) for file in TrainKind().inputs(spec))
    grid.waiting.append(
        LeaseOffer(
            lease_id=LeaseId(name),
            fence=1,
            unit_key=spec.key,
            spec=spec.to_bytes(),
            model=spec.model,
            inputs=inputs,
            deadline_at=datetime.now(UTC) + timedelta(hours=1),
            estimate_s=60.0,
        )
    )
    grid.changed.set()


def computed_calmly(spec: TrainSpec, unit_dir: Path, model_folder: Path, out_dir: Path) -> dict[str, str]:
    """The digests of the unit's outputs when nothing comes between."""
    out_dir.mkdir()
    job = Job(kind="train", unit_dir=unit_dir, model_dir=model_folder, out_dir=out_dir)
    Train(find_devices()[-1], SystemClock(), lambda progress: None).run(job)
    return {name: digest_of_file(out_dir / name) for name in output_names(spec)}


async def start(home: Home) -> asyncio.subprocess.Process:
    command = (Path(sys.executable).with_name("memgrid"), "volunteer", "run", "--home", str(home.folder))
    return await asyncio.create_subprocess_exec(
        *(*command, "--threads", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def committed(home: Home, lease: str) -> int:
    """How many states of a lease are whole on the volunteer's disk."""
    try:
        return len(json.loads((home.work / "out" / lease / COMMITTED_FILE).read_bytes())["states"])
    except OSError:
        return 0


def first_state(home: Home, lease: str) -> tuple[int, int]:
    """Which file the first committed state is, and when it was written: not again, if training went on after it."""
    found = (home.work / "out" / lease / "state-0001.safetensors").stat()
    return found.st_ino, found.st_mtime_ns


def workers(process: asyncio.subprocess.Process) -> list[psutil.Process]:
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if "memgrid_volunteer.worker" in " ".join(child.cmdline())]


async def test_killed_worker_and_agent_leave_no_trace_in_the_result(tmp_path: Path) -> None:
    model_folder = make_tiny_model(tmp_path / "tiny")
    grid = ScriptedGrid()
    await grid.start()
    files = tuple(grid._blob(path.name, path.read_bytes()) for path in sorted(model_folder.iterdir()))
    grid.model = ModelFiles(digest=grid.model.digest, files=files)
    spec, unit_dir = make_unit(tmp_path, model_folder, grid)
    home = Home(tmp_path / "volunteer")
    home.make()
    # Whatever else this machine does meanwhile.
    (home.folder / "volunteer.toml").write_text('preset = "always"\n')
    home.join(
        Membership(url=grid.url, name="scripted", account_id=AccountId("a1"), host_id=HostId("h1"), label="attic")
    )
    offer(grid, "first", spec, unit_dir)
    process = await start(home)
    await grid.until(lambda: committed(home, "first") >= 3, limit_s=60)

    written = first_state(home, "first")
    for worker in workers(process):
        worker.kill()
    await grid.until(lambda: len(grid.released) == 1)
    assert grid.released[0].reason.code in (ReasonCode.OUT_OF_MEMORY, ReasonCode.UNIT_FAILED)
    # The grid tries again, and happens to ask the same host.
    offer(grid, "second", spec, unit_dir)
    await grid.until(lambda: committed(home, "second") >= 6, limit_s=60)

    assert first_state(home, "second") == written

    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await asyncio.to_thread(psutil.wait_procs, family, timeout=10)
    reached = committed(home, "second")
    process = await start(home)
    # Granted once, never heard of again: the grid offers the same lease anew, and nothing is lost.
    await grid.until(lambda: committed(home, "second") >= reached, limit_s=60)
    assert first_state(home, "second") == written
    await grid.until(lambda: LeaseId("second") in grid.settled, limit_s=120)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 15) == 0
    await grid.stop()

    calm = computed_calmly(spec, unit_dir, model_folder, tmp_path / "calm")
    assert {output.name: output.digest for output in grid.reports[-1].outputs} == calm
