"""Planning a large corpus: time by its length, memory of both processes, and the tokenizer alone beside it."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
from demonstration.grid import Grid, running_grid
from rich.console import Console

from benchmarks.lifecycle import cpu_s, make_model
from benchmarks.polls import Prepared, bring
from benchmarks.report import Report, Row
from benchmarks.scale import memory_of
from memgrid.campaign import CampaignFile
from memgrid.cli.submitting import submit_campaign
from memgrid.cube.manifest import Wrap
from memgrid.cube.wrap import ids_of_documents
from memgrid.endpoint import discover
from memgrid.testing import SimulatedHost
from memgrid.text import bytes_text, seconds_text
from memgrid_coordinator.heavy.plan import load_tokenizer

DOCUMENTS = (25_000, 50_000, 100_000)
QUICK = (500, 1000, 2000)
WORDS_A_DOCUMENT = 100
ALONE = 2000
"""Documents that the tokenizer alone is measured on."""
_LETTERS = "etaoinshrdlu"


def run(console: Console, quick: bool) -> Report:
    rows: list[Row] = []
    for documents in QUICK if quick else DOCUMENTS:
        with tempfile.TemporaryDirectory() as scratch, console.status(f"planning: {documents:,} documents"):
            rows.append(measure(Path(scratch), documents))
    return Report(
        name="planning",
        title=f"Submitting a corpus of documents of {WORDS_A_DOCUMENT} words",
        columns={
            "documents": lambda row: f"{row['documents']:,}",
            "text": lambda row: bytes_text(row["text_bytes"]),
            "wall": lambda row: seconds_text(row["wall_s"]),
            "processor: engine": lambda row: seconds_text(row["engine_cpu_s"]),
            "coordinator": lambda row: seconds_text(row["coordinator_cpu_s"]),
            "engine MB/s": lambda row: f"{row['engine_mb_per_s']:.2f}",
            "tokenizer alone": lambda row: f"{row['tokenizer_mb_per_s']:.2f}",
            "memory: engine": lambda row: bytes_text(row["engine_bytes"]),
            "coordinator ": lambda row: bytes_text(row["coordinator_bytes"]),
            "longest Sync": lambda row: seconds_text(row["sync_most_s"]),
        },
        rows=rows,
        notes=(
            "MB/s: of text, by processor seconds. Memory: the most that was ever resident.",
            "longest Sync: of a host that asked all the time while the corpus was planned and written down.",
        ),
    )


def measure(folder: Path, documents: int) -> Row:
    model = make_model(folder / "tiny")
    corpus = prepare(folder / "corpus", documents)
    text_bytes = sum(len(text) for text in texts(documents))
    tokenizer_bytes_per_s = measure_tokenizer(model)
    with running_grid(folder) as grid:
        grid.operator("model", "push", str(model), "tiny")
        # What the first campaign alone pays: the engine's process comes up and imports what planning needs.
        asyncio.run(submit(grid, prepare(folder / "first", 10)))
        pid = grid.processes.pid("coordinator")
        before, began_s = cpu_s(pid), time.perf_counter()
        sync_most_s = asyncio.run(submit(grid, corpus))
        wall_s, after = time.perf_counter() - began_s, cpu_s(pid)
        process = psutil.Process(pid)
        engines = [memory_of(child)["resident_most_bytes"] for child in process.children(recursive=True)]
        engine_cpu_s = after[1] - before[1]
        return {
            "documents": documents,
            "text_bytes": text_bytes,
            "wall_s": wall_s,
            "engine_cpu_s": engine_cpu_s,
            "coordinator_cpu_s": after[0] - before[0],
            "engine_mb_per_s": text_bytes / engine_cpu_s / 1e6,
            "tokenizer_mb_per_s": tokenizer_bytes_per_s / 1e6,
            "engine_bytes": max(engines, default=0),
            "coordinator_bytes": memory_of(process)["resident_most_bytes"],
            "sync_most_s": sync_most_s,
        }


def prepare(folder: Path, documents: int) -> Prepared:
    """A campaign whose documents are made of words of few letters, no two of them alike."""
    folder.mkdir()
    with (folder / "letters.jsonl").open("w") as file:
        for text in texts(documents):
            file.write(json.dumps({"text": text}) + "\n")
    campaign = {
        "name": "corpus",
        "model": "models/tiny",
        "recipe": "activation",
        "sources": [{"path": "letters.jsonl"}],
        "activation": {"chunk_tokens": 512, "wrap": "plain"},
        "publish": {"namespace": "corpus", "version": "1.0.0", "licence": "CC0-1.0"},
    }
    return Prepared(folder=folder, campaign=CampaignFile.model_validate(campaign), work={})


def texts(documents: int) -> Iterator[str]:
    rng = random.Random(documents)
    words = ["".join(rng.choices(_LETTERS, k=rng.randint(2, 9))) for _ in range(5000)]
    return (" ".join(rng.choices(words, k=WORDS_A_DOCUMENT)) for _ in range(documents))


def measure_tokenizer(model: Path) -> float:
    """Bytes of text that the model's tokenizer alone takes in a second of the processor."""
    tokenizer, some = load_tokenizer(model), list(texts(ALONE))
    ids_of_documents(tokenizer, some[:10], Wrap.PLAIN)
    began_s = time.process_time()
    ids_of_documents(tokenizer, some, Wrap.PLAIN)
    return sum(map(len, some)) / (time.process_time() - began_s)


async def submit(grid: Grid, corpus: Prepared) -> float:
    """Submit, and meanwhile ask for work without a pause; the longest that an answer took."""
    endpoint = await asyncio.to_thread(discover, grid.url, home=grid.folder / "load")
    token = grid.token_file.read_text().strip()
    brought = await asyncio.to_thread(bring, grid.url, token, corpus)
    host = SimulatedHost(endpoint=endpoint)
    await host.enrol()
    asking = asyncio.create_task(_ask(host))
    try:
        await submit_campaign(endpoint, token, brought, Console(quiet=True))
    finally:
        asking.cancel()
    longest_s = await asking
    await host.close()
    return longest_s


async def _ask(host: SimulatedHost) -> float:
    """Sync until cancelled, with nothing to say; the longest that it took."""
    longest_s, began_s = 0.0, time.perf_counter()
    try:
        while True:
            began_s = time.perf_counter()
            await host.sync(wait=timedelta(0))
            longest_s = max(longest_s, time.perf_counter() - began_s)
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return max(longest_s, 0.0)
