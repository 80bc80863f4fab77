"""What a result costs here and what a task costs in task queues, in one run on one machine.

A life cycle does far more than a task of a queue: two signed and encrypted exchanges with a stranger, comparison,
check, credit. The queues trust their workers, who share their machine and get nothing to do. So a queue's figure is
what carrying a message to and fro costs when nothing else is wanted: a yardstick for the machine. Celery is measured
where `redis-server` is installed; the queues' packages go into an environment of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.cubes import ROOT
from benchmarks.lifecycle import UNITS, Setting, cpu_s, measure
from benchmarks.report import Report, Row

PACKAGES = ("celery[redis]==5.7.0", "procrastinate==3.10.0", "psycopg[binary]", "psutil")
ENVIRONMENT = ROOT / ".cache" / "benchmarks" / "peers"
PROGRAMS = Path(__file__).parent / "peer_programs"
OURS = (Setting(quorum=2, batch=1), Setting(quorum=2, batch=20))


def run(console: Console, quick: bool) -> Report:
    count = UNITS // 4 if quick else UNITS
    rows: list[Row] = []
    with console.status("peers: installing Celery and Procrastinate"):
        python = _environment()
    for setting in OURS:
        with console.status(f"peers: memgrid, {setting.batch} units a Sync"), tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), setting, count)
        name = f"memgrid, {setting.batch} a Sync"
        rows.append(_row(name, count, found["cpu_ms_per_result"] * count / 1e3, 0.0, count / found["results_per_s"]))
    if shutil.which("redis-server") is not None:
        with console.status("peers: Celery"), _redis() as (url, pid):
            rows.append(_measure("Celery and Redis", python, "celery_queue.py", url, pid, count))
    with console.status("peers: Procrastinate"), _postgres() as (url, pid):
        rows.append(_measure("Procrastinate and PostgreSQL", python, "procrastinate_queue.py", url, pid, count))
    return Report(
        name="peers",
        title=f"A result, and a task that does nothing, {count} of each, durable",
        columns={
            "what": lambda row: row["what"],
            "CPU ms": lambda row: f"{row['cpu_ms']:.2f}",
            "of it, the queue's store": lambda row: f"{row['store_cpu_ms']:.2f}",
            "a second": lambda row: f"{row['per_s']:.0f}",
        },
        rows=rows,
        notes=(
            "memgrid: the coordinator with its database and its helpers, without the hosts.",
            "Queues: the worker and the store, without whoever hands tasks in.",
        ),
    )


def _measure(what: str, python: str, program: str, url: str, store_pid: int, tasks: int) -> Row:
    stored_s = -_store_cpu_s(store_pid)
    command = [python, str(PROGRAMS / program), str(tasks)]
    done = subprocess.run(
        command, env={**os.environ, "PEER_URL": url}, stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return _row(what, tasks, told["worker_cpu_s"], stored_s + _store_cpu_s(store_pid), told["took_s"])


def _store_cpu_s(pid: int) -> float:
    """Of a server and of those that it started, those among them that have ended included."""
    ended = psutil.Process(pid).cpu_times()
    return sum(cpu_s(pid)) + ended.children_user + ended.children_system


def _row(what: str, count: int, worker_s: float, store_s: float, took_s: float) -> Row:
    return {
        "what": what,
        "count": count,
        "cpu_ms": 1e3 * (worker_s + store_s) / count,
        "store_cpu_ms": 1e3 * store_s / count,
        "per_s": count / took_s,
    }


def _environment() -> str:
    """The interpreter beside the queues' packages, made at the first run."""
    python = ENVIRONMENT / "bin" / "python"
    ready = ENVIRONMENT / "ready.json"
    if not ready.exists() or json.loads(ready.read_text()) != list(PACKAGES):
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True, stdout=sys.stderr)
        ready.write_text(json.dumps(PACKAGES))
    return str(python)


@contextmanager
def _redis() -> Iterator[tuple[str, int]]:
    """A Redis that writes everything to disk before it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--dir", folder, "--appendonly", "yes", "--appendfsync", "always"]
        server = subprocess.Popen(["redis-server", *options, "--save", ""], stdout=subprocess.DEVNULL)
        try:
            _await(port)
            yield f"redis://127.0.0.1:{port}/0", server.pid
        finally:
            server.terminate()
            server.wait(10)


@contextmanager
def _postgres() -> Iterator[tuple[str, int]]:
    from tests.postgres import running_postgres

    with running_postgres() as server:
        yield server.empty_database(), server.pid


def _await(port: int) -> None:
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise RuntimeError("Redis does not start")
