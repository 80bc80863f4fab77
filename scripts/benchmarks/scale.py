"""What a coordinator costs with a million units: its start, its memory, what it does by itself, and its answers.

A small real grid is made, its rows are copied until there are a million, and the coordinator is started again on that
database, of which nothing is in the system's cache. It is watched first while it is left alone, then while some hosts
work as fast as they are answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
from demonstration.grid import running_grid
from demonstration.processes import last_lines
from rich.console import Console

from benchmarks.filling import Size, fill
from benchmarks.lifecycle import Setting as Campaign
from benchmarks.lifecycle import make_model, write_campaign
from benchmarks.report import Report, Row, percentile
from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import async_http_client, discover
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu, SimulatedHost, SimulatedWork
from memgrid.text import bytes_text, seconds_text
from memgrid.units import LeaseId, LeaseOffer
from memgrid_coordinator.store.blobs import BlobStore

FULL = Size(units=1_000_000, accepted=300_000)
QUICK = Size(units=20_000, accepted=6_000)
WORKERS = 4
RESTARTS = 3
LONG_POLL = timedelta(seconds=1)
START_LIMIT_S = 120.0
MEMGRID = str(Path(sys.executable).with_name("memgrid"))


def run(console: Console, quick: bool) -> Report:
    size, watch_s = (QUICK, 10.0) if quick else (FULL, 30.0)
    with tempfile.TemporaryDirectory(dir=os.environ.get("MEMGRID_BENCH_FOLDER")) as scratch:
        folder = Path(scratch)
        with console.status("scale: a small grid"):
            grid = asyncio.run(prepare(folder))
        with console.status(f"scale: {size.units:,} units"):
            fill(grid.database, BlobStore(grid.data / "blobs"), size)
        with console.status("scale: starts"):
            starts = [asyncio.run(measure_start(grid)) for _ in range(1 if quick else RESTARTS)]
        with console.status("scale: watching it"), serving(grid) as process:
            alone = watch(process, grid, watch_s)
            worked = asyncio.run(measure_work(process, grid, watch_s))
    return Report(
        name="scale",
        title=f"A coordinator with {size.units:,} units, {size.accepted:,} of them accepted",
        columns={"what": lambda row: row["what"], "figure": lambda row: row["figure"]},
        rows=[*_start_rows(starts), *_alone_rows(alone), *_work_rows(worked)],
        notes=(
            "starts: nothing of the database in the system's cache; to the address file, to an answered Sync.",
            "a run of a sweep is the mean of all, wall; the processor's share is of one core.",
        ),
        facts={"starts": starts, "alone": alone, "working": worked, "database_bytes": grid.database_bytes},
    )


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A grid that has been, and hosts it knows."""

    folder: Path
    geometry: ModelGeometry
    hosts: list[SimulatedHost]
    database_bytes: int = 0

    def tokens_of(self, offer: LeaseOffer) -> bytes:
        return BlobStore(self.data / "blobs").read_bytes(offer.inputs[0].digest)

    @property
    def data(self) -> Path:
        return self.folder / "grid"

    @property
    def database(self) -> Path:
        return self.data / "memgrid.db"


async def prepare(folder: Path) -> Prepared:
    """A grid with a campaign of few units, stopped again."""
    model = make_model(folder / "tiny")
    campaign = write_campaign(folder, Campaign(quorum=2, batch=1), 20)
    hosts = []
    with running_grid(folder) as grid:
        grid.operator("model", "push", str(model), "tiny")
        grid.operator("campaign", "submit", str(campaign))
        for _ in range(WORKERS):
            host = SimulatedHost(endpoint=discover(grid.url, home=folder / "load"))
            await host.enrol()
            await host.close()  # the next call is in another event loop, and finds another server
            hosts.append(host)
    return Prepared(folder=folder, geometry=identity_of_folder(model).geometry, hosts=hosts)


async def measure_start(grid: Prepared) -> Row:
    """Seconds from the command to the address, and to the answer of a host that was known before."""
    forget(grid.database)
    began_s = time.perf_counter()
    with serving(grid) as process:
        ready_s = time.perf_counter() - began_s
        await meet(grid)
        await grid.hosts[0].sync()
        synced_s = time.perf_counter() - began_s
        times = process.cpu_times()
        await grid.hosts[0].close()
    return {"ready_s": ready_s, "synced_s": synced_s, "cpu_s": times.user + times.system}


def watch(process: psutil.Process, grid: Prepared, watch_s: float) -> Row:
    """Memory and processor of a coordinator that nobody asks anything, and what its sweeps take."""
    grid.database_bytes = grid.database.stat().st_size
    time.sleep(watch_s)
    before, began_s = process.cpu_times(), time.perf_counter()
    time.sleep(watch_s)
    after, taken_s = process.cpu_times(), time.perf_counter() - began_s
    return {
        "cpu_share": (after.user + after.system - before.user - before.system) / taken_s,
        "cpu_s_before": before.user + before.system,
        **memory_of(process),
        **asyncio.run(sweeps_of(grid)),
    }


async def measure_work(process: psutil.Process, grid: Prepared, work_s: float) -> Row:
    """Hosts that answer for what they are given, a unit a Sync, for some time."""
    await meet(grid)
    took_s: list[float] = []
    before, began_s = process.cpu_times(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for host in grid.hosts:
            group.create_task(work(host, grid, began_s + work_s, took_s))
    after, taken_s = process.cpu_times(), time.perf_counter() - began_s
    for host in grid.hosts:
        await host.close()
    return {
        "results": len(took_s),
        "results_per_s": len(took_s) / taken_s,
        "cpu_ms_per_result": 1e3 * (after.user + after.system - before.user - before.system) / len(took_s),
        "sync_p50_ms": 1e3 * statistics.median(took_s),
        "sync_p99_ms": 1e3 * percentile(took_s, 0.99),
        "sync_most_ms": 1e3 * max(took_s),
        **memory_of(process),
        **await sweeps_of(grid),
    }


async def work(host: SimulatedHost, grid: Prepared, until_s: float, took_s: list[float]) -> None:
    """Lease, report, upload; `took_s` gets how long each Sync with a report took."""
    gpu, contents, done = SimulatedGpu(grid.geometry), dict[LeaseId, bytes](), list[SimulatedWork]()
    while time.perf_counter() < until_s:
        began_s = time.perf_counter()
        wait = timedelta(0) if done else LONG_POLL
        answer = await host.sync(want=1, awaiting=list(contents), work=done, wait=wait)
        if done:
            took_s.append(time.perf_counter() - began_s)
        for verdict in answer.verdicts:
            contents.pop(verdict.lease_id, None)
        for order in answer.uploads:
            if order.lease_id in contents:
                (await host.upload(order, contents[order.lease_id])).raise_for_status()
        done = [gpu.work(offer, grid.tokens_of(offer)) for offer in answer.leases]
        contents |= {one.claim.lease_id: one.content for one in done}


async def meet(grid: Prepared) -> None:
    """Let the hosts find the grid where it is now."""
    url = json.loads((grid.data / "endpoint.json").read_text())["url"]
    endpoint = await asyncio.to_thread(discover, url, home=grid.folder / "load")
    for host in grid.hosts:
        host.endpoint = endpoint


@contextmanager
def serving(grid: Prepared) -> Iterator[psutil.Process]:
    """The coordinator on its old data, from the moment that its address is written."""
    endpoint = grid.data / "endpoint.json"
    endpoint.unlink(missing_ok=True)
    words = [MEMGRID, "coordinator", "serve", "--data", str(grid.data), "--http-port", "0", "--grpc-port", "0"]
    with (grid.folder / "coordinator.log").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    until_s = time.monotonic() + START_LIMIT_S
    try:
        while not endpoint.exists():
            if process.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(f"no coordinator:\n{last_lines(grid.folder / 'coordinator.log')}")
            time.sleep(0.01)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def forget(database: Path) -> None:
    """Put a file out of the system's cache, as after the machine was started again."""
    for path in (database, database.with_name(database.name + "-wal")):
        if path.exists():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_of(process: psutil.Process) -> Row:
    """Bytes that are resident now and were at the most, without the processes that check and plan."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    most = re.search(r"VmHWM:\s+(\d+) kB", status)
    return {
        "resident_bytes": process.memory_info().rss,
        "resident_most_bytes": 1024 * int(most.group(1)) if most else 0,
    }


async def sweeps_of(grid: Prepared) -> Row:
    """Wall seconds of each sweep, all runs together, how many those were, and of each part of the gauges the last."""
    await meet(grid)
    async with async_http_client(grid.hosts[0].endpoint) as http:
        found = (await http.get("/metrics")).raise_for_status().text
    sums = _values(found, "memgrid_sweep_seconds_sum", "sweep")
    counts = _values(found, "memgrid_sweep_seconds_count", "sweep")
    return {
        "sweeps": {name: {"sum_s": sums[name], "runs": int(counts[name])} for name in sums},
        "gauges_s": _values(found, "memgrid_gauges_read_seconds", "part"),
    }


def _values(metrics: str, name: str, label: str) -> dict[str, float]:
    pattern = re.compile(rf'^{name}{{{label}="([^"]+)"}} (\S+)$', re.MULTILINE)
    return {found[1]: float(found[2]) for found in pattern.finditer(metrics)}


def _start_rows(starts: list[Row]) -> list[Row]:
    def said(name: str) -> str:
        values = [one[name] for one in starts]
        return f"{seconds_text(min(values))} (median {seconds_text(statistics.median(values))})"

    return [
        {"what": "start to address", "figure": said("ready_s")},
        {"what": "start to an answered Sync", "figure": said("synced_s")},
    ]


def _rows(found: Row) -> list[Row]:
    memory = f"{bytes_text(found['resident_bytes'])} (at most {bytes_text(found['resident_most_bytes'])})"
    sweeps = found["sweeps"].items()
    means = (f"{name} {seconds_text(one['sum_s'] / one['runs'])}" for name, one in sweeps if one["runs"])
    parts = (f"{name} {seconds_text(taken_s)}" for name, taken_s in found["gauges_s"].items())
    return [
        {"what": "  resident memory", "figure": memory},
        {"what": "  a run of a sweep", "figure": ", ".join(means)},
        {"what": "  gauges, last reading", "figure": ", ".join(parts)},
    ]


def _alone_rows(found: Row) -> list[Row]:
    return [{"what": "left alone", "figure": f"{found['cpu_share']:.1%} of a core"}, *_rows(found)]


def _work_rows(found: Row) -> list[Row]:
    figure = f"{found['results_per_s']:.0f} results/s, {found['cpu_ms_per_result']:.1f} ms of the processor each"
    syncs = f"p50 {found['sync_p50_ms']:.1f} ms, p99 {found['sync_p99_ms']:.1f}, most {found['sync_most_ms']:.1f}"
    return [
        {"what": f"{WORKERS} hosts at work", "figure": figure},
        {"what": "  Sync with a report", "figure": syncs},
        *_rows(found),
    ]
