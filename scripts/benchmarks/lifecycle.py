"""Full life cycles of tiny units through a real coordinator: CPU and rate per agreed result.

Eight simulated hosts with keys of their own speak the real protocol to a coordinator process: lease, signed report,
judgement, check of the output, acceptance, credit, and at the end the cubes. Every answer leaves after its
transaction is on disk, SQLite's or PostgreSQL's. The outputs were made beforehand; without uploads they
lie in the content store already. The load runs on the same cores, but its CPU is not counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from demonstration.grid import Grid, running_grid
from rich.console import Console

from benchmarks.load import Load, prepare_work
from benchmarks.report import Report, Row
from memgrid.campaign import CampaignFile
from memgrid.cube.identity import identity_of_folder
from memgrid.digest import digest_of_file
from memgrid.endpoint import discover
from memgrid_coordinator.heavy.plan import ActivationPlan, plan_activation
from memgrid_coordinator.heavy.sources import SourceFile, SourceFormat
from memgrid_coordinator.recipes.activation import plan_parameters
from memgrid_coordinator.store.blobs import BlobStore

HOSTS = 8
UNITS = 2000
CHUNK_TOKENS = 16
_DOCUMENT_CHARACTERS = 1900
_UNITS_A_DOCUMENT = _DOCUMENT_CHARACTERS // (CHUNK_TOKENS - 1)
BOINC_NOTES = (
    "BOINC server 8.3.0 on a like machine, durable: 18.5 ms with one job a request, an upload and its check;",
    "13-14 ms with one job a request, no upload; 5.15 ms with 20 a request and a persistent scheduler, quorum 2.",
)


POSTGRESQL = "PostgreSQL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row: so many agreeing reports a unit, so many units a Sync, outputs uploaded or there already."""

    quorum: int
    batch: int
    uploads: bool = False
    database: str = "SQLite"


# Made-up outputs would fail every audit, and with a quorum of one there are audits.
SETTINGS = (
    Setting(quorum=2, batch=1),
    Setting(quorum=2, batch=20),
    Setting(quorum=2, batch=1, uploads=True),
    Setting(quorum=2, batch=1, database=POSTGRESQL),
    Setting(quorum=2, batch=20, database=POSTGRESQL),
)


def run(console: Console, quick: bool) -> Report:
    units = UNITS // 4 if quick else UNITS
    rows = []
    for setting in SETTINGS:
        with console.status(f"lifecycle: {setting}"), tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), setting, units))
    return Report(
        name="lifecycle",
        title=f"Life cycles of tiny units ({HOSTS} hosts, TLS, signed reports, durable before acknowledged)",
        columns={
            "database": lambda row: row["database"],
            "quorum": lambda row: str(row["quorum"]),
            "units a Sync": lambda row: str(row["batch"]),
            "upload": lambda row: "yes" if row["uploads"] else "no",
            "CPU ms a result": lambda row: f"{row['cpu_ms_per_result']:.2f}",
            "of it, server": lambda row: f"{row['server_cpu_ms_per_result']:.2f}",
            "beside it, database": lambda row: f"{row['database_cpu_ms_per_result']:.2f}",
            "results/s": lambda row: f"{row['results_per_s']:.0f}",
            "Sync p50 ms": lambda row: f"{row['sync_p50_ms']:.1f}",
            "p95": lambda row: f"{row['sync_p95_ms']:.1f}",
        },
        rows=rows,
        notes=("server: the process that answers; the rest is its helpers, which check outputs.", *BOINC_NOTES),
    )


def measure(folder: Path, setting: Setting, units: int) -> Row:
    model = make_model(folder / "tiny")
    campaign = write_campaign(folder, setting, units)
    plan = plan_locally(folder, campaign, model)
    work = prepare_work(plan, identity_of_folder(model).geometry)
    if not setting.uploads:
        store = BlobStore(folder / "grid" / "blobs")
        for done in work.values():
            store.put_bytes(done.content)
    with database_for(setting) as (url, database_pid), running_grid(folder, database=url) as grid:
        grid.operator("model", "push", str(model), "tiny")
        submitted = json.loads(grid.operator("campaign", "submit", str(campaign), "--json"))
        load = Load(discover(grid.url, home=folder / "load"), work, setting.batch, setting.uploads)
        return asyncio.run(drain(grid, load, setting, submitted, database_pid))


@contextmanager
def database_for(setting: Setting) -> Iterator[tuple[str | None, int | None]]:
    """The URL of a new database and the process that serves it; None for a file, which the coordinator opens."""
    if setting.database != POSTGRESQL:
        yield None, None
        return
    from tests.postgres import running_postgres

    with running_postgres() as server:
        yield server.new_database(), server.pid


async def drain(grid: Grid, load: Load, setting: Setting, submitted: dict[str, Any], database_pid: int | None) -> Row:
    """Let the hosts work until every unit is accepted; the CPU it took the coordinator."""
    units = submitted["units"]
    await load.enrol(HOSTS)
    before, began_s = cpu_s(grid.processes.pid("coordinator")), time.perf_counter()
    stored_s = 0.0 if database_pid is None else sum(cpu_s(database_pid))
    await load.work_until_accepted(units, grid.token_file.read_text().strip(), submitted["campaign_id"])
    took_s, after = time.perf_counter() - began_s, cpu_s(grid.processes.pid("coordinator"))
    stored_s = 0.0 if database_pid is None else sum(cpu_s(database_pid)) - stored_s
    results = units * setting.quorum
    server_s, helpers_s = after[0] - before[0], after[1] - before[1]
    syncs = sorted(load.sync_s)
    return {
        "database": setting.database,
        "quorum": setting.quorum,
        "batch": setting.batch,
        "uploads": setting.uploads,
        "units": units,
        "results": results,
        "cpu_ms_per_result": 1e3 * (server_s + helpers_s) / results,
        "server_cpu_ms_per_result": 1e3 * server_s / results,
        "database_cpu_ms_per_result": 1e3 * stored_s / results,
        "results_per_s": results / took_s,
        "syncs": len(syncs),
        "sync_p50_ms": 1e3 * syncs[len(syncs) // 2],
        "sync_p95_ms": 1e3 * syncs[int(len(syncs) * 0.95)],
    }


def cpu_s(pid: int) -> tuple[float, float]:
    """User and system time of a process, and of those it started."""

    def used(process: psutil.Process) -> float:
        times = process.cpu_times()
        return times.user + times.system

    coordinator = psutil.Process(pid)
    return used(coordinator), sum(used(child) for child in coordinator.children(recursive=True))


def make_model(folder: Path) -> Path:
    """A model of one layer: units as small as they can be."""
    from tests.models import make_tiny_model

    return make_tiny_model(folder, layers=1)


def write_campaign(folder: Path, setting: Setting, units: int) -> Path:
    """A campaign of so many units, all open at once, over random letters."""
    rng = random.Random(setting.quorum * 100 + setting.batch)
    length = min(_DOCUMENT_CHARACTERS, units * (CHUNK_TOKENS - 1))
    with (folder / "letters.jsonl").open("w") as file:
        for _ in range(-(-units // _UNITS_A_DOCUMENT)):
            text = "".join(rng.choices(string.ascii_lowercase, k=length))
            file.write(json.dumps({"text": text}) + "\n")
    path = folder / "campaign.yaml"
    value = {
        "name": "load",
        "model": "models/tiny",
        "recipe": "activation",
        "sources": [{"path": "letters.jsonl"}],
        "activation": {"layout": "independent", "chunk_tokens": CHUNK_TOKENS, "wrap": "plain"},
        "publish": {"namespace": "load", "version": "1.0.0", "licence": "CC0-1.0"},
        "trust": {"min_replicas": setting.quorum, "max_replicas": 5},
    }
    path.write_text(json.dumps(value))
    return path


def plan_locally(folder: Path, campaign: Path, model: Path) -> ActivationPlan:
    """The plan the coordinator will make, so that all results can be ready before the clock runs."""
    source = SourceFile(
        path=folder / "letters.jsonl",
        uri="letters.jsonl",
        digest=digest_of_file(folder / "letters.jsonl"),
        format=SourceFormat.JSONL,
        licence="CC0-1.0",
    )
    parameters = plan_parameters(CampaignFile.load(campaign), flops_per_s=1e9, document_tokens_max=1 << 20)
    identity = replace(identity_of_folder(model), name="models/tiny")
    return plan_activation([source], model, identity, parameters)
