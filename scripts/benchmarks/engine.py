"""The grid's own engine, inline and on Ray, by its workers: calls a second, and against one worker.

The calls are the grid's own: planning a corpus, and checking uploads of a model's size. All are handed in at once,
after each worker has done some, so that what a process loads once is not counted. Every row is measured some times;
the quickest counts, since what else the machine does can only slow it down. Nothing else runs in between, so two
workers can at best do what two cores can do that share caches and memory: `alone` is that, for the same calls in
plain processes without an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import psutil
from rich.console import Console

from benchmarks.lifecycle import make_model
from benchmarks.planning import texts
from benchmarks.report import Report, Row
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.digest import digest_of, digest_of_file
from memgrid.kinds.prefill import ModelGeometry
from memgrid.specs import PrefillSpec
from memgrid.testing import SimulatedGpu
from memgrid.units import ComputeDtype, LeaseId, LeaseOffer, StoreDtype
from memgrid_coordinator.heavy.check import UploadedOutput, check_outputs
from memgrid_coordinator.heavy.chunks import PlanParameters
from memgrid_coordinator.heavy.plan import plan_activation
from memgrid_coordinator.heavy.ray_engine import RayEngine
from memgrid_coordinator.heavy.ray_node import nothing
from memgrid_coordinator.heavy.runner import InlineEngine
from memgrid_coordinator.heavy.sources import SourceFile, SourceFormat

WORKERS = (1, 2)
PASSES, CALLS, EMPTY_CALLS = 5, 24, 400
DOCUMENTS_A_CALL = 150
UPLOADS_A_CALL, TOKENS_AN_UPLOAD = 4, 512
GEOMETRY = ModelGeometry(
    layers=30,
    kv_heads=3,
    head_dim=64,
    heads=9,
    hidden=576,
    vocab=49_152,
    parameters=134_515_008,
    tied_embeddings=True,
)
"""Of SmolLM2-135M."""
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Runs(Protocol):
    """What can run a call."""

    async def run(self, function: Callable[..., Any], *args: Any) -> Any: ...


@dataclass(frozen=True)
class Alone:
    """Plain processes, the least that calls elsewhere can cost."""

    pool: ProcessPoolExecutor

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *args)


def run(console: Console, quick: bool) -> Report:
    os.environ["OMP_NUM_THREADS"] = "1"  # two threads a worker would be measured as two workers
    rows: list[Row] = []
    passes, calls = (2, 8) if quick else (PASSES, CALLS)
    with tempfile.TemporaryDirectory() as scratch:
        works = prepare(Path(scratch), calls)
        for name in ("alone", "inline", "ray"):
            for workers in WORKERS:
                with console.status(f"engine: {name}, {workers}"):
                    rows.append(asyncio.run(measure(name, workers, works, passes)))
    for row in rows:
        (one,) = (other for other in rows if (other["engine"], other["workers"]) == (row["engine"], 1))
        row["times"] = {work: row[work]["per_s"] / one[work]["per_s"] for work in works}
    return Report(
        name="engine",
        title=f"Calls of the engine by its workers; the machine has {os.cpu_count()} cores",
        columns={
            "engine": lambda row: row["engine"],
            "workers": lambda row: str(row["workers"]),
            "plans/s": lambda row: f"{row['planning']['per_s']:.2f}",
            "to one": lambda row: f"{row['times']['planning']:.2f}",
            "processor a plan": lambda row: f"{row['planning']['cpu_s']:.2f} s",
            "checks/s": lambda row: f"{row['checking']['per_s']:.2f}",
            "to one ": lambda row: f"{row['times']['checking']:.2f}",
            "processor a check": lambda row: f"{row['checking']['cpu_s']:.2f} s",
            "an empty call": lambda row: f"{row['empty_s'] * 1e3:.1f} ms",
        },
        rows=rows,
        notes=(
            f"a plan: {DOCUMENTS_A_CALL} documents of 100 words; a check: {UPLOADS_A_CALL} uploads of "
            f"{TOKENS_AN_UPLOAD} tokens of SmolLM2-135M. The quickest of {passes} passes of {calls} calls.",
            "processor: of all other processes than the one that asks, Ray's own among them.",
        ),
    )


def prepare(folder: Path, calls: int) -> dict[str, list[Call]]:
    """The calls of each kind of work."""
    model = make_model(folder / "tiny")
    return {
        "planning": [(plan_activation, _plan(folder, model))] * calls,
        "checking": [(check_outputs, (_uploads(folder),))] * calls,
    }


def _plan(folder: Path, model: Path) -> tuple[list[SourceFile], Path, ModelIdentity, PlanParameters]:
    path = folder / "letters.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(DOCUMENTS_A_CALL)))
    source = SourceFile(
        path=path, uri=path.name, digest=digest_of_file(path), format=SourceFormat.JSONL, licence="CC0-1.0"
    )
    parameters = PlanParameters(
        layout=LayoutKind.CHAINED,
        wrap=Wrap.PLAIN,
        chunk_tokens=512,
        target_unit_s=20,
        flops_per_s=1e9,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=StoreDtype.BFLOAT16,
        sink_tokens=1,
    )
    return [source], model, identity_of_folder(model), parameters


def _uploads(folder: Path) -> list[UploadedOutput]:
    return [_upload(folder / f"upload-{number}", number) for number in range(UPLOADS_A_CALL)]


def _upload(folder: Path, number: int) -> UploadedOutput:
    tokens = (number.to_bytes(4, "little")) * TOKENS_AN_UPLOAD
    spec = PrefillSpec(
        model=digest_of(b"model"),
        tokens=digest_of(tokens),
        token_count=TOKENS_AN_UPLOAD,
        start=0,
        parent=None,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=StoreDtype.FLOAT32,
    )
    offer = LeaseOffer(
        lease_id=LeaseId(str(number)),
        fence=1,
        unit_key=spec.key,
        spec=spec.to_bytes(),
        model=spec.model,
        inputs=(),
        deadline_at=datetime.now(UTC),
        estimate_s=1.0,
    )
    work = SimulatedGpu(GEOMETRY).work(offer, tokens)
    folder.mkdir()
    (folder / "kv.safetensors").write_bytes(work.content)
    (folder / "tokens.bin").write_bytes(tokens)
    return UploadedOutput(
        spec=offer.spec,
        files={"kv.safetensors": folder / "kv.safetensors"},
        inputs={"tokens.bin": folder / "tokens.bin"},
        sketch=work.sketch,
        geometry=GEOMETRY,
    )


async def measure(name: str, workers: int, works: dict[str, list[Call]], passes: int) -> Row:
    row: Row = {"engine": name, "workers": workers}
    async with _running(name, workers) as runs:
        for work, calls in works.items():
            answers = await _all(runs, calls[: 2 * workers])
            assert all(answer for answer in answers)
            row[work] = min([await _pass(runs, calls) for _ in range(passes)], key=lambda one: -one["per_s"])
        assert (await runs.run(*_flat(works["checking"][0]))) == [None] * UPLOADS_A_CALL, "an upload was refused"
        began_s = time.perf_counter()
        await _all(runs, [(nothing, ())] * EMPTY_CALLS)
        row["empty_s"] = (time.perf_counter() - began_s) / EMPTY_CALLS
    return row


def _flat(call: Call) -> tuple[Any, ...]:
    return (call[0], *call[1])


async def _pass(runs: Runs, calls: Sequence[Call]) -> Row:
    before_s, began_s = _cpu_s(), time.perf_counter()
    await _all(runs, calls)
    return {
        "per_s": len(calls) / (time.perf_counter() - began_s),
        "cpu_s": (_cpu_s() - before_s) / len(calls),
    }


async def _all(runs: Runs, calls: Sequence[Call]) -> list[Any]:
    return await asyncio.gather(*(runs.run(*_flat(call)) for call in calls))


def _cpu_s() -> float:
    """Of every process that this one has started, and of those that these have."""
    total_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


@contextlib.asynccontextmanager
async def _running(name: str, workers: int) -> AsyncIterator[Runs]:
    if name == "alone":
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield Alone(pool)
        return
    engine = InlineEngine(processes=workers) if name == "inline" else RayEngine("local", cpus=workers)
    try:
        yield engine
    finally:
        await engine.close(timedelta(0))
