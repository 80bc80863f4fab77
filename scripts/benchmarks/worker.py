"""A volunteer's worker against a bare prefill loop: the same chunks, in turns, on as many threads.

The worker is the real one: a child process behind the walls this machine allows, that reads a unit's folder,
computes, writes the chunk file and its sketch, and answers. The loop is a few lines that keep nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModel, AutoTokenizer, DynamicCache

from benchmarks.cubes import MODEL, PARAMETERS, ROOT
from benchmarks.report import Report, Row, spread
from memgrid.cube.identity import identity_of_folder
from memgrid.cube.manifest import LayoutKind
from memgrid.digest import token_ids
from memgrid.log import configure_logging
from memgrid_coordinator.heavy.chunks import PlannedChunk, PlanParameters, as_tokens, cut
from memgrid_volunteer.isolation import Folders
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.sandbox import Sandbox

SIZES = (256, 1024)
TOKENS = 8192


def run(console: Console, quick: bool) -> Report:
    configure_logging(level="WARNING")
    with console.status("worker"), tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(_measure(Path(folder), TOKENS // 4 if quick else TOKENS))
    return Report(
        name="worker",
        title=f"Units through the worker, SmolLM2-135M, {torch.get_num_threads()} threads",
        columns={
            "tokens a unit": lambda row: str(row["chunk_tokens"]),
            "units": lambda row: str(row["units"]),
            "worker, tokens/s": lambda row: f"{row['worker_tokens_per_s']:.0f}",
            "bare loop, tokens/s": lambda row: f"{row['bare_tokens_per_s']:.0f}",
            "worker to loop": lambda row: f"{100 * row['ratio']:.1f} %",
        },
        rows=rows,
        notes=("Medians over units, worker and loop in turns; the aim is 95 %.",),
    )


async def _measure(folder: Path, tokens: int) -> list[Row]:
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    sandbox = Sandbox(_folders(folder), threads=torch.get_num_threads())
    try:
        return [await _compare(folder, sandbox, model, size, tokens) for size in SIZES]
    finally:
        await sandbox.kill()


async def _compare(folder: Path, sandbox: Sandbox, model: Any, size: int, tokens: int) -> Row:
    chunks = _chunks(size, tokens)
    worker_s, bare_s = [], []
    for number, chunk in enumerate(chunks):
        job = _lay_out(folder, number, chunk)
        began_s = time.perf_counter()
        outcome = await sandbox.run(job)
        worker_s.append(time.perf_counter() - began_s)
        if outcome.failure is not None:
            raise SystemExit(f"the worker failed: {outcome.failure.text}")
        for made in (job.unit_dir, job.out_dir):
            shutil.rmtree(made)
        began_s = time.perf_counter()
        bare_prefill(model, chunk)
        bare_s.append(time.perf_counter() - began_s)
    # Both load and warm up with their first unit.
    worker, bare = statistics.median(worker_s[1:]), statistics.median(bare_s[1:])
    return {
        "chunk_tokens": size,
        "units": len(chunks),
        "worker_s": spread(worker_s[1:]),
        "bare_s": spread(bare_s[1:]),
        "worker_tokens_per_s": size / worker,
        "bare_tokens_per_s": size / bare,
        "ratio": bare / worker,
    }


@torch.inference_mode()
def bare_prefill(model: Any, chunk: PlannedChunk) -> None:
    """What anybody would write."""
    ids = torch.tensor([token_ids(chunk.tokens)], device=model.device)
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    cache.layers[-1].keys[0, 0, 0, 0].item()  # waits for the device


def _chunks(size: int, tokens: int) -> list[PlannedChunk]:
    """Units of exactly `size` tokens, each from position 0, from the project's documentation."""
    identity = identity_of_folder(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    text = "\n\n".join(path.read_text() for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
    ids = as_tokens(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])[: tokens // size * size]
    parameters = PlanParameters(
        layout=LayoutKind.INDEPENDENT,
        wrap=PARAMETERS.wrap,
        chunk_tokens=size,
        target_unit_s=PARAMETERS.target_unit_s,
        flops_per_s=PARAMETERS.flops_per_s,
        compute_dtype=PARAMETERS.compute_dtype,
        store_dtype=PARAMETERS.store_dtype,
        sink_tokens=0,
    )
    return list(cut(ids, size, identity.digest, identity.geometry, parameters))


def _folders(folder: Path) -> Folders:
    """A cache with the model, as a volunteer has it, and a place for units."""
    cache, work = folder / "cache", folder / "work"
    shutil.copytree(MODEL, cache / "models" / "smollm2")
    folders = Folders(cache=cache, work=work)
    folders.make()
    return folders


def _lay_out(folder: Path, number: int, chunk: PlannedChunk) -> Job:
    """A unit's folders as the supervisor makes them."""
    unit, out = folder / "work" / "in" / str(number), folder / "work" / "out" / str(number)
    for made in (unit / "past", out):
        made.mkdir(parents=True)
    (unit / "spec.json").write_bytes(chunk.spec_bytes)
    (unit / "tokens.bin").write_bytes(chunk.tokens)
    model_dir = folder / "cache" / "models" / "smollm2"
    return Job(kind="prefill", unit_dir=unit, model_dir=model_dir, out_dir=out)
