"""How long `memgrid` takes to answer when nothing has to be computed, with Python's own start beside it.

A coordinator has answered when it says how volunteers join it: both planes are open by then.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.report import Report, Row, spread
from memgrid.text import seconds_text

MEMGRID = str(Path(sys.executable).with_name("memgrid"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "memgrid --help": [MEMGRID, "--help"],
    "memgrid ls": [MEMGRID, "ls"],
    "memgrid --version": [MEMGRID, "--version"],
    "memgrid volunteer --help": [MEMGRID, "volunteer", "--help"],
    "memgrid campaign --help": [MEMGRID, "campaign", "--help"],
}
SERVE = "memgrid coordinator serve"
REPEATS = 15


def run(console: Console, quick: bool) -> Report:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home:
        for name, words in COMMANDS.items():
            with console.status(f"startup: {name}"):
                rows.append({"command": name, **_measure(words, home, 3 if quick else REPEATS)})
        with console.status(f"startup: {SERVE}"):
            rows.append({"command": SERVE, **_measure_serving(home, 3 if quick else REPEATS)})
    return Report(
        name="startup",
        title="From the command to its answer",
        columns={
            "command": lambda row: row["command"],
            "wall, least": lambda row: seconds_text(row["wall_s"]["least"]),
            "median": lambda row: seconds_text(row["wall_s"]["median"]),
            "processor": lambda row: seconds_text(row["cpu_s"]["least"]),
        },
        rows=rows,
        notes=("processor: the least of all runs; it says the same on a busy machine.",),
    )


def _measure(words: list[str], home: str, repeats: int) -> Row:
    """Wall and processor seconds; the first run only fills the caches of the system."""
    surroundings = {"PATH": os.environ["PATH"], "HOME": home, "MEMGRID_CACHE": home}
    wall_s, cpu_s = [], []
    for _ in range(repeats + 1):
        before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(words, env=surroundings, stdout=subprocess.DEVNULL, check=True)
        wall_s.append(time.perf_counter() - began_s)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall_s": spread(wall_s[1:]), "cpu_s": spread(cpu_s[1:])}


def _measure_serving(home: str, repeats: int) -> Row:
    """The same of a coordinator with a fresh data folder; each is stopped once it serves."""
    wall_s, cpu_s = [], []
    for number in range(repeats + 1):
        ports = ["--http-port", "0", "--grpc-port", "0"]
        words = [MEMGRID, "coordinator", "serve", "--data", f"{home}/{number}", *ports]
        began_s = time.perf_counter()
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline(), "it did not start"
            wall_s.append(time.perf_counter() - began_s)
            times = psutil.Process(process.pid).cpu_times()
            cpu_s.append(times.user + times.system)
            process.terminate()
            process.communicate()
    return {"wall_s": spread(wall_s[1:]), "cpu_s": spread(cpu_s[1:])}
