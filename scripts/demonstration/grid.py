"""A grid on this machine: a coordinator and its volunteers, some of whom cheat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demonstration.processes import DemoError, Processes

SCRIPTS = Path(__file__).resolve().parent.parent
MEMGRID = str(Path(sys.executable).with_name("memgrid"))
HONEST = ("alice", "bob")
CHEAT = "mallory"
LAZY = "oscar"
_WORKERS = {CHEAT: "cheating_worker", LAZY: "lazy_worker"}
"""Whose work is done by another module than memgrid's own."""
START_LIMIT_S = 90.0
COMMAND_LIMIT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A running grid and how to speak to it as its operator or as a consumer."""

    folder: Path
    url: str
    token_file: Path
    processes: Processes
    hosts: dict[str, str]
    """host id -> volunteer"""

    def operator(self, *arguments: str, show: bool = False) -> str:
        """Run a `memgrid` command as the operator; its standard output. `show` lets people see its bars."""
        return self._run("operator", arguments, {"MEMGRID_TOKEN": f"@{self.token_file}"}, show)

    def consumer(self, *arguments: str) -> str:
        return self._run("consumer", arguments, {"COLUMNS": "120"}, False)

    @property
    def consumer_home(self) -> Path:
        return self.folder / "consumer"

    def story(self, thing: str) -> dict[str, Any]:
        story: dict[str, Any] = json.loads(self.operator("explain", thing, "--json"))
        return story

    def _run(self, who: str, arguments: tuple[str, ...], more: dict[str, str], show: bool) -> str:
        self.processes.check()
        environment = {**os.environ, "MEMGRID_HOME": str(self.folder / who), "MEMGRID_GRID": self.url, **more}
        return run([MEMGRID, *arguments], environment, show)

    def rejections(self) -> list[dict[str, str]]:
        """Every report that was rejected so far, and whose it was."""
        return [
            {"volunteer": name, "host": host, "reason": event["reason"], "text": event["text"]}
            for host, name in self.hosts.items()
            for event in self.story(host)["events"]
            if event["name"] == "report_rejected"
        ]

    def bring_volunteers(self, *names: str, threads: int = 1) -> None:
        """Let them join, unless they have, and begin with so many threads each; returns when they have.

        Three volunteers on a small machine would otherwise fight over its cores.
        """
        new = [name for name in names if name not in self.hosts.values()]
        with ThreadPoolExecutor(len(names)) as pool:
            ids = list(pool.map(lambda name: join(self.folder, self.url, name), new))
        self.hosts.update(zip(ids, new, strict=True))
        for name in names:
            start_volunteer(self.processes, self.folder, name, threads)

    def send_home(self, *names: str) -> None:
        """End some volunteers, or all; they give back what they hold."""
        self.processes.end(*(names or (*HONEST, *_WORKERS)))


@contextmanager
def running_grid(folder: Path, *, database: str | None = None) -> Iterator[Grid]:
    """A coordinator that waits for volunteers; everything that runs is gone when this ends.

    `database` is a URL; without, it keeps a file of its own.
    """
    with Processes() as processes:
        data = folder / "grid"
        serve = ["coordinator", "serve", "--data", str(data), "--http-port", "0", "--grpc-port", "0"]
        serve += [] if database is None else ["--database", database]
        processes.start("coordinator", [MEMGRID, *serve], log=folder / "coordinator.log")
        processes.wait_for(data / "endpoint.json", START_LIMIT_S)
        url = json.loads((data / "endpoint.json").read_text())["url"]
        yield Grid(
            folder=folder,
            url=url,
            token_file=data / "keys" / "operator.token",
            processes=processes,
            hosts={},
        )


def join(folder: Path, url: str, name: str) -> str:
    """Make a volunteer known to the grid; its host's id."""
    command = [MEMGRID, "volunteer", "join", url, "--home", str(folder / name), "--label", name, "--json"]
    host_id: str = json.loads(run(command, volunteer_environment(folder, name), False))["host_id"]
    # Several share this machine, and would make way for one another.
    (folder / name / "volunteer.toml").write_text('preset = "always"\n')
    return host_id


def start_volunteer(processes: Processes, folder: Path, name: str, threads: int) -> None:
    """Let it work, in the background."""
    command = [MEMGRID, "volunteer", "run", "--home", str(folder / name)]
    if name in _WORKERS:
        command += ["--worker-module", _WORKERS[name]]
    environment = volunteer_environment(folder, name) | {"OMP_NUM_THREADS": str(threads)}
    processes.start(name, command, log=folder / f"{name}.log", environment=environment)


def volunteer_environment(folder: Path, name: str) -> dict[str, str]:
    own = {"MEMGRID_HOME": str(folder / name)}
    # Where the module of a cheat is found; nobody else needs it.
    return {**os.environ, **own, **({"PYTHONPATH": str(SCRIPTS)} if name in _WORKERS else {})}


def run(command: list[str], environment: dict[str, str], show: bool) -> str:
    """Run a command to its end; raises DemoError with what it said when it fails."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            timeout=COMMAND_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise DemoError(f"{' '.join(command[1:4])} took more than {COMMAND_LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        said = "" if show else (done.stderr or done.stdout).strip()
        raise DemoError(f"memgrid {' '.join(command[1:])} failed with status {done.returncode}\n{said}")
    return done.stdout
