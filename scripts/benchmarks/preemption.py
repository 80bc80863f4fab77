"""How soon a device is its owner's again, and how much of the work is lost by that.

A real worker computes a unit of each kind; at drawn moments it is told to hold, let go on, and killed. A hold is over
when none of its processes gets processor time any more; a kill when all of them are gone, and with them their memory,
of which on a GPU the driver is asked. What is lost is the computing between the last commit and the kill; the next
worker goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console

from benchmarks.cubes import MODEL
from benchmarks.preempted_units import KINDS, lay_out
from benchmarks.report import Report, Row, percentile
from memgrid.log import configure_logging
from memgrid_volunteer.isolation import Folders
from memgrid_volunteer.kinds.committed import COMMITTED_FILE
from memgrid_volunteer.kinds.job import Job, Outcome, Progress
from memgrid_volunteer.sandbox import Sandbox

KILLS = 8
RUN_S = (1.0, 30.0)
"""A kill comes so long after the work began, drawn evenly: about as long as two commits are apart."""
_LOOK_S = 0.002
_STILL_S = 0.25
"""Without processor time for so long, a worker holds."""
_LIMIT_S = 120.0
_GPU_BYTES_HELD = 256 << 20
"""The weights alone take more."""


def run(console: Console, quick: bool) -> Report:
    configure_logging(level="WARNING")
    rows = []
    for kind in KINDS:
        with console.status(f"preemption: {kind}"), tempfile.TemporaryDirectory() as folder:
            rows.append(asyncio.run(_measure(kind, Path(folder), 2 if quick else KILLS)))
    every = [second for row in rows for second in row["released_s"]]
    return Report(
        name="preemption",
        title=f"A worker is preempted, SmolLM2-135M, {torch.get_num_threads()} threads",
        columns={
            "unit": lambda row: row["kind"],
            "kills": lambda row: str(len(row["released_s"])),
            "held after, p50": lambda row: f"{1e3 * percentile(row['held_s'], 0.5):.0f} ms",
            "p99": lambda row: f"{1e3 * percentile(row['held_s'], 0.99):.0f} ms",
            "released after, p50": lambda row: f"{1e3 * percentile(row['released_s'], 0.5):.0f} ms",
            "p99 ": lambda row: f"{1e3 * percentile(row['released_s'], 0.99):.0f} ms",
            "work lost, mean": lambda row: f"{statistics.mean(row['lost_s']):.1f} s",
            "most": lambda row: f"{max(row['lost_s']):.1f} s",
        },
        rows=rows,
        facts={"released_p50_s": percentile(every, 0.5), "released_p99_s": percentile(every, 0.99)},
        notes=(
            "The aims are 2 s from the kill to all memory given back, and 30 s of lost work.",
            "To hold is to stop between two micro-batches with all memory kept.",
        ),
    )


async def _measure(kind: str, folder: Path, kills: int) -> Row:
    folders = Folders(cache=folder / "cache", work=folder / "work")
    shutil.copytree(MODEL, folders.cache / "models" / "smollm2")
    job = lay_out(kind, folders, folders.cache / "models" / "smollm2")
    sandbox, rng = Sandbox(folders, threads=torch.get_num_threads()), random.Random(kind)
    row: Row = {"kind": kind, "held_s": [], "released_s": [], "lost_s": []}
    try:
        # The first run only gets to where there is something to go on from.
        await _preempt(sandbox, job, rng, None)
        for _ in range(kills):
            await _preempt(sandbox, job, rng, row)
    finally:
        await sandbox.kill()
    return row


async def _preempt(sandbox: Sandbox, job: Job, rng: random.Random, row: Row | None) -> None:
    """Start or go on, hold, go on, kill; what is measured goes into `row`."""
    began = asyncio.Event()

    def hear(progress: Progress) -> None:
        began.set()

    await sandbox.start()
    running = asyncio.create_task(sandbox.run(job, hear))
    async with asyncio.timeout(_LIMIT_S):
        if row is None:
            while not (job.out_dir / COMMITTED_FILE).exists():
                _check(running)
                await asyncio.sleep(_STILL_S)
        else:
            await began.wait()
    began_at = time.time()
    await asyncio.sleep(rng.uniform(*RUN_S) / 2)
    held_s = await _hold(sandbox)
    await asyncio.sleep(rng.uniform(*RUN_S) / 2)
    _check(running)
    resting_s = held_s[1]
    lost_from = max(began_at, (job.out_dir / COMMITTED_FILE).stat().st_mtime)
    killed_at = time.time()
    released_s = await _release(sandbox)
    await running
    if row is not None:
        # A hold since the last commit was no work.
        row["held_s"].append(held_s[0])
        row["released_s"].append(released_s)
        row["lost_s"].append(killed_at - lost_from - (resting_s if lost_from < held_s[2] else 0.0))


def _check(running: asyncio.Task[Outcome]) -> None:
    if running.done():
        raise SystemExit(f"the unit ended before it could be preempted: {running.result()}")


async def _hold(sandbox: Sandbox) -> tuple[float, float, float]:
    """Seconds from the word to the last processor time, seconds held in all, and when the hold began."""
    family = _family(sandbox)
    said = time.perf_counter()
    sandbox.pace(0.0)
    spent, last = _cpu_s(family), said
    async with asyncio.timeout(_LIMIT_S):
        while time.perf_counter() - last < _STILL_S:
            await asyncio.sleep(_LOOK_S)
            if (now := _cpu_s(family)) != spent:
                spent, last = now, time.perf_counter()
    began_at = time.time() - (time.perf_counter() - last)
    sandbox.pace(1.0)
    return last - said, time.perf_counter() - last, began_at


async def _release(sandbox: Sandbox) -> float:
    """Seconds from the kill until no process is left and no memory held."""
    family, free_before = _family(sandbox), _gpu_free_bytes()
    said = time.perf_counter()
    await sandbox.kill()
    await asyncio.to_thread(_wait_for_end, family)
    released_s = time.perf_counter() - said
    if free_before is not None:
        await asyncio.to_thread(_wait_for_gpu_memory, free_before + _GPU_BYTES_HELD)
        released_s = time.perf_counter() - said
    return released_s


def _family(sandbox: Sandbox) -> list[psutil.Process]:
    assert sandbox.pid is not None
    parent = psutil.Process(sandbox.pid)
    return [parent, *parent.children(recursive=True)]


def _cpu_s(family: list[psutil.Process]) -> float:
    total = 0.0
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _wait_for_end(family: list[psutil.Process]) -> None:
    """Until none of them runs; one that nobody has asked for its status yet has no memory any more."""
    limit_s = time.monotonic() + _LIMIT_S
    while any(_is_alive(process) for process in family):
        if time.monotonic() > limit_s:
            raise SystemExit("the worker did not end")
        time.sleep(_LOOK_S)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _wait_for_gpu_memory(free_bytes: int) -> None:
    limit_s = time.monotonic() + _LIMIT_S
    while (_gpu_free_bytes() or 0) < free_bytes:
        if time.monotonic() > limit_s:
            raise SystemExit("the GPU's memory did not come back")
        time.sleep(_LOOK_S)


def _gpu_free_bytes() -> int | None:
    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
