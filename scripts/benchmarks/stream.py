"""How much of its time a volunteer computes when unit follows unit over a home's line.

The volunteer is the real one; its worker sleeps instead of computing, so that the machine's own load counts for
nothing, and writes as much as a cache of that size has. The grid is a scripted one behind a proxy with the delay and
the rates of such a line: every unit's inputs have to come, and every result has to go up.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.report import Report, Row
from benchmarks.slow_line import Lane, SlowLine
from memgrid.text import bytes_text
from tests.scripted_grid import ScriptedGrid

ROOT = Path(__file__).resolve().parents[2]
MEMGRID = str(Path(sys.executable).with_name("memgrid"))
UNITS = 200
UNIT_MS = 1000
TOKENS = 16 << 10
"""A unit brings 64 KiB and leaves a megabyte, which takes 0.4 s of the line that it has."""
DELAY_S = 0.05
UP_BYTES_PER_S = 20e6 / 8
DOWN_BYTES_PER_S = 50e6 / 8
SLEEPS = 10
_LIMIT_S = 120.0


def run(console: Console, quick: bool) -> Report:
    units = 20 if quick else UNITS
    with tempfile.TemporaryDirectory() as scratch, console.status(f"stream: {units} units of {UNIT_MS} ms"):
        row = asyncio.run(_measure(Path(scratch), units))
    return Report(
        name="stream",
        title="A volunteer at the end of a home's line",
        columns={
            "units": lambda row: str(row["units"]),
            "wall time": lambda row: f"{row['wall_s']:.1f} s",
            "computing": lambda row: f"{row['computing_share']:.2%}",
            "without the first second": lambda row: f"{row['steady_share']:.2%}",
            "sent": lambda row: bytes_text(row["sent_bytes"]),
            "line up": lambda row: f"{row['line_up_share']:.0%} used",
            "all credited": lambda row: f"{row['settled_after_s']:.1f} s later",
            "supervisor": lambda row: f"{row['cpu_share']:.1%} of a core",
            "memory": lambda row: bytes_text(row["resident_bytes"]),
        },
        rows=[row],
        notes=(
            f"units of {UNIT_MS} ms; {DELAY_S * 1e3:.0f} ms of delay each way, {UP_BYTES_PER_S * 8e-6:.0f} Mbit/s up,"
            f" {DOWN_BYTES_PER_S * 8e-6:.0f} Mbit/s down; every result goes up.",
            "computing: of the time from the first lease to the last report.",
        ),
    )


async def _measure(folder: Path, units: int) -> Row:
    grid = ScriptedGrid()
    await grid.start()
    line = SlowLine(
        up=Lane(bytes_per_s=UP_BYTES_PER_S, delay_s=DELAY_S), down=Lane(bytes_per_s=DOWN_BYTES_PER_S, delay_s=DELAY_S)
    )
    try:
        async with line.listen(grid.grpc_port) as grpc_port, line.listen(grid.http_port) as http_port:
            grid.grpc_port_told = grpc_port
            return await _work(folder, f"http://127.0.0.1:{http_port}", grid, line, units)
    finally:
        await grid.stop()


async def _work(folder: Path, url: str, grid: ScriptedGrid, line: SlowLine, units: int) -> Row:
    home, worker = folder / "home", ("--worker-module", "tests.workers.quick")
    joining = await _start(folder, "join", url, "--home", str(home), *worker)
    assert await joining.wait() == 0
    # The machine may be busy with anything else: here only the line counts.
    (home / "volunteer.toml").write_text('preset = "always"\n')
    for number in range(units):
        grid.offer(f"unit-{number}", SLEEPS, UNIT_MS, number, *range(TOKENS - 3), estimate_s=UNIT_MS / 1e3)
    running = await _start(folder, "run", "--home", str(home), "--max-units", str(units), *worker)
    try:
        await grid.until(lambda: grid.granted, limit_s=_LIMIT_S)
        process, began_s = psutil.Process(running.pid), time.perf_counter()
        before = process.cpu_times()
        await grid.until(lambda: grid.reports, limit_s=_LIMIT_S)
        first_s = time.perf_counter()
        await grid.until(lambda: len(grid.reported) == units, limit_s=_LIMIT_S + 3 * units * UNIT_MS / 1e3)
        ended_s, after, memory = time.perf_counter(), process.cpu_times(), process.memory_info()
        await grid.until(lambda: len(grid.settled) == units, limit_s=_LIMIT_S)
        settled_s = time.perf_counter()
        await running.wait()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    computed_s = {claim.lease_id: claim.facts.compute_s for claim in grid.reports}
    wall_s, steady_s = ended_s - began_s, ended_s - first_s
    spent_s = after.user + after.system - before.user - before.system
    return {
        "units": units,
        "wall_s": wall_s,
        "computing_share": sum(computed_s.values()) / wall_s,
        "steady_share": sum(list(computed_s.values())[1:]) / steady_s,
        "sent_bytes": line.up.passed_bytes,
        "line_up_share": line.up.passed_bytes / UP_BYTES_PER_S / (settled_s - began_s),
        "settled_after_s": settled_s - ended_s,
        "cpu_share": spent_s / wall_s,
        "resident_bytes": memory.rss,
        "syncs": len(grid.asks),
    }


async def _start(folder: Path, *words: str) -> asyncio.subprocess.Process:
    surroundings: dict[str, Any] = {**os.environ, "MEMGRID_HOME": str(folder / "memgrid"), "PYTHONPATH": str(ROOT)}
    with (folder / "volunteer.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            MEMGRID, "volunteer", *words, env=surroundings, stdout=log, stderr=log
        )
