"""Two thousand hosts that wait in long polls: what they cost while there is nothing, and how soon they are answered.

The hosts speak the real protocol over a few connections and processes of the same machine. First all of them wait.
Then small campaigns come one after another; whoever is rung takes a unit, thinks, and reports it. The outputs lie in
the content store already, so no upload is counted.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
from demonstration.grid import Grid, running_grid
from rich.console import Console

from benchmarks import waiting
from benchmarks.lifecycle import Setting, cpu_s, make_model, plan_locally, write_campaign
from benchmarks.load import prepare_work
from benchmarks.report import Report, Row, percentile
from benchmarks.scale import memory_of
from memgrid.campaign import CampaignFile
from memgrid.campaign_sources import find_sources
from memgrid.cli.submitting import Brought, bring_source, submit_campaign
from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import discover
from memgrid.pool import Pool
from memgrid.testing import SimulatedWork
from memgrid.text import bytes_text
from memgrid.units import UnitKey
from memgrid.v1 import campaigns_pb2 as pb
from memgrid_coordinator.store.blobs import BlobStore

HOSTS = 2000
PROCESSES = 2
CAMPAIGNS = 40
UNITS = 4
EVERY_S = 1.0
QUORUM = 2
READY_LIMIT_S = 600.0


def run(console: Console, quick: bool) -> Report:
    hosts, campaigns, watch_s = (100, 4, 6.0) if quick else (HOSTS, CAMPAIGNS, 30.0)
    with tempfile.TemporaryDirectory() as scratch, console.status("polls: work that is done already"):
        folder = Path(scratch)
        model = make_model(folder / "tiny")
        trickle = [prepare(folder / f"campaign-{number}", model, number) for number in range(campaigns)]
        row = measure(console, folder, model, trickle, hosts, watch_s)
    return Report(
        name="polls",
        title=f"{hosts:,} hosts in long polls, and a campaign of {UNITS} units every {EVERY_S:.0f} s",
        columns={
            "all wait: processor": lambda row: f"{row['idle_cpu_share']:.1%} of a core",
            "memory": lambda row: bytes_text(row["resident_bytes"]),
            "at work: processor": lambda row: f"{row['busy_cpu_share']:.1%}",
            "results": lambda row: str(row["results"]),
            "Sync with a report p50": lambda row: f"{row['report_p50_ms']:.1f} ms",
            "report p99": lambda row: f"{row['report_p99_ms']:.1f} ms",
            "a call that does nothing p99": lambda row: f"{row['nothing_p99_ms']:.1f} ms",
            "submitted to leased p50": lambda row: f"{row['rung_p50_ms']:.0f} ms",
            "leased p99": lambda row: f"{row['rung_p99_ms']:.0f} ms",
        },
        rows=[row],
        notes=(
            "processor: of the coordinator with its helpers. The hosts' own processes share the machine with it.",
            "a call that does nothing: the machine's own share; a busy one makes every answer wait as long.",
            "submitted to leased: from the answer to `submit` to the answer with the first lease of each unit.",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A campaign, where its text lies, and what its units come to."""

    folder: Path
    campaign: CampaignFile
    work: Mapping[UnitKey, SimulatedWork]


def prepare(folder: Path, model: Path, number: int) -> Prepared:
    folder.mkdir()
    # Both numbers only make the letters differ from those of the other campaigns.
    path = write_campaign(folder, Setting(quorum=QUORUM, batch=number), UNITS)
    plan = plan_locally(folder, path, model)
    value = json.loads(path.read_text())
    value["publish"]["namespace"] = f"load-{number}"
    work = prepare_work(plan, identity_of_folder(model).geometry)
    return Prepared(folder=folder, campaign=CampaignFile.model_validate(value), work=work)


def measure(console: Console, folder: Path, model: Path, trickle: list[Prepared], hosts: int, watch_s: float) -> Row:
    work = {key: done for one in trickle for key, done in one.work.items()}
    store = BlobStore(folder / "grid" / "blobs")
    for done in work.values():
        store.put_bytes(done.content)
    light = {key: replace(done, content=b"") for key, done in work.items()}
    with running_grid(folder) as grid:
        grid.operator("model", "push", str(model), "tiny")
        pid = grid.processes.pid("coordinator")
        console.log(f"polls: {hosts:,} hosts enrol")
        with crowded(grid, hosts, light) as heard:
            console.log("polls: all wait")
            idle = _share_of(pid, watch_s)
            resident = memory_of(psutil.Process(pid))
            console.log("polls: work comes")
            before, began_s = sum(cpu_s(pid)), time.perf_counter()
            submitted = asyncio.run(submit_all(grid, trickle))
            time.sleep(EVERY_S)
            busy = (sum(cpu_s(pid)) - before) / (time.perf_counter() - began_s)
        return {
            "hosts": hosts,
            "idle_cpu_share": idle,
            "busy_cpu_share": busy,
            **resident,
            **_summed(heard, submitted),
        }


@contextmanager
def crowded(grid: Grid, hosts: int, work: Mapping[UnitKey, SimulatedWork]) -> Iterator[list[waiting.Heard]]:
    """All hosts wait while this is open; what they measured is in the list after it was closed."""
    context = multiprocessing.get_context("spawn")
    ready, heard, over = context.Queue(), context.Queue(), context.Event()
    task = waiting.Task(url=grid.url, home=grid.folder / "load", hosts=hosts // PROCESSES, work=work)
    running = [context.Process(target=waiting.serve, args=(task, ready, over, heard)) for _ in range(PROCESSES)]
    found: list[waiting.Heard] = []
    for process in running:
        process.start()
    try:
        for _ in running:
            _next(ready, running)
        yield found
        over.set()
        found += [_next(heard, running) for _ in running]
    finally:
        over.set()
        for process in running:
            process.join(10.0)
            process.kill()


def _next(queue: Any, running: list[Any]) -> Any:
    """What comes next; raises RuntimeError when a process has ended without a word."""
    until_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < until_s:
        try:
            return queue.get(timeout=1.0)
        except Empty:
            if any(process.exitcode for process in running):
                break
    raise RuntimeError("the hosts did not come through; their trace stands above")


async def submit_all(grid: Grid, trickle: list[Prepared]) -> dict[UnitKey, float]:
    """One campaign after another; returns when the grid said of each unit that it is there."""
    endpoint = await asyncio.to_thread(discover, grid.url, home=grid.folder / "load")
    token = grid.token_file.read_text().strip()
    quiet = Console(quiet=True)
    brought = [await asyncio.to_thread(bring, grid.url, token, one) for one in trickle]
    submitted: dict[UnitKey, float] = {}
    for request, one in zip(brought, trickle, strict=True):
        await submit_campaign(endpoint, token, request, quiet)
        submitted |= dict.fromkeys(one.work, time.monotonic())
        await asyncio.sleep(EVERY_S)
    return submitted


def bring(url: str, token: str, one: Prepared) -> Brought:
    with Pool(url, token=token) as pool:
        brought = [bring_source(pool, one.campaign.name, source) for source in find_sources(one.campaign, one.folder)]
    asked = pb.SubmitRequest(request_id=uuid.uuid4().hex, campaign=one.campaign.to_bytes(), sources=brought)
    return Brought(request=asked)


def _share_of(pid: int, watch_s: float) -> float:
    before, began_s = sum(cpu_s(pid)), time.perf_counter()
    time.sleep(watch_s)
    return (sum(cpu_s(pid)) - before) / (time.perf_counter() - began_s)


def _summed(heard: list[waiting.Heard], submitted: Mapping[UnitKey, float]) -> Row:
    reports = [1e3 * taken_s for one in heard for taken_s in one.report_s]
    nothing = [1e3 * taken_s for one in heard for taken_s in one.nothing_s]
    first: dict[UnitKey, float] = {}
    for one in heard:
        for key, moments in one.leased.items():
            first[key] = min(first.get(key, moments[0]), *moments)
    rung = [1e3 * max(0.0, at - submitted[key]) for key, at in first.items()]
    return {
        "results": len(reports),
        "errors": sum(one.errors for one in heard),
        "report_p50_ms": percentile(reports, 0.5),
        "report_p99_ms": percentile(reports, 0.99),
        "report_least_ms": min(reports),
        "report_most_ms": max(reports),
        "nothing_p50_ms": percentile(nothing, 0.5),
        "nothing_p99_ms": percentile(nothing, 0.99),
        "rung_p50_ms": percentile(rung, 0.5),
        "rung_p99_ms": percentile(rung, 0.99),
    }
