"""What a volunteer's supervisor takes of a machine while its grid has no work for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.report import Report, Row
from memgrid.text import bytes_text

MEMGRID = str(Path(sys.executable).with_name("memgrid"))
SETTLE_S = 15.0
WATCH_S = 60.0
READY_MAX_S = 60.0


def run(console: Console, quick: bool) -> Report:
    with tempfile.TemporaryDirectory() as scratch, console.status("idle: a grid without work"):
        rows = [_measure(Path(scratch), 10.0 if quick else WATCH_S)]
    return Report(
        name="idle",
        title="A volunteer that waits for work",
        columns={
            "supervisor": lambda row: row["process"],
            "memory": lambda row: bytes_text(row["resident_bytes"]),
            "of its own": lambda row: bytes_text(row["unique_bytes"]),
            "processor": lambda row: f"{row['cpu_share']:.2%} of a core",
            "processes": lambda row: str(row["processes"]),
        },
        rows=rows,
        notes=(f"watched for {rows[0]['watched_s']:.0f} s, over gRPC with long polls.",),
    )


def _measure(folder: Path, watch_s: float) -> Row:
    surroundings = {**os.environ, "MEMGRID_HOME": str(folder / "home")}
    data, home = folder / "grid", folder / "volunteer"
    ports = ["--http-port", "0", "--grpc-port", "0"]
    running = [_start(["coordinator", "serve", "--data", str(data), *ports], surroundings)]
    try:
        url = _url_of(data / "endpoint.json")
        join = [MEMGRID, "volunteer", "join", url, "--home", str(home)]
        subprocess.run(join, env=surroundings, stdout=subprocess.DEVNULL, check=True)
        running.append(_start(["volunteer", "run", "--home", str(home)], surroundings))
        time.sleep(SETTLE_S)
        return _watch(psutil.Process(running[-1].pid), watch_s)
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            process.wait(READY_MAX_S)


def _watch(process: psutil.Process, watch_s: float) -> Row:
    before, began_s = process.cpu_times(), time.perf_counter()
    time.sleep(watch_s)
    after, memory = process.cpu_times(), process.memory_full_info()
    watched_s = time.perf_counter() - began_s
    spent_s = after.user + after.system - before.user - before.system
    return {
        "process": "memgrid volunteer run",
        "resident_bytes": memory.rss,
        "unique_bytes": memory.uss,
        "cpu_share": spent_s / watched_s,
        "processes": 1 + len(process.children(recursive=True)),
        "watched_s": watched_s,
    }


def _start(words: list[str], surroundings: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([MEMGRID, *words], env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _url_of(endpoint: Path) -> str:
    until_s = time.monotonic() + READY_MAX_S
    while not endpoint.exists():
        if time.monotonic() > until_s:
            raise TimeoutError(f"no coordinator in {READY_MAX_S:.0f} s")
        time.sleep(0.1)
    url: str = json.loads(endpoint.read_text())["url"]
    return url
