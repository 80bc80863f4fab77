"""A grid of real processes on loopback, for tests that kill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMGRID = str(Path(sys.executable).with_name("memgrid"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Grid:
    """A coordinator and some volunteers; each can be killed and started again under its own name."""

    def __init__(self, folder: Path, volunteers: int, *, lease_shortest_s: float = 15.0) -> None:
        self.folder = folder
        self.data = folder / "grid"
        self.volunteers = [f"volunteer{number}" for number in range(volunteers)]
        # Fixed ports: volunteers look for a restarted coordinator where it was.
        self._ports = [str(free_port()), str(free_port())]
        self._lease_shortest_s = lease_shortest_s
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        url: str = json.loads((self.data / "endpoint.json").read_text())["url"]
        return url

    def start_coordinator(self) -> None:
        http_port, grpc_port = self._ports
        serve = ["coordinator", "serve", "--data", str(self.data), "--http-port", http_port, "--grpc-port", grpc_port]
        (self.data / "endpoint.json").unlink(missing_ok=True)
        self._start("coordinator", [*serve, "--lease-shortest-s", str(self._lease_shortest_s)])

    def wait_until_ready(self, limit_s: float = 60.0) -> None:
        until = time.monotonic() + limit_s
        while not (self.data / "endpoint.json").exists():
            if time.monotonic() > until:
                raise TimeoutError(f"no coordinator in {limit_s} s: {self.log('coordinator')[-2000:]}")
            time.sleep(0.05)

    def join(self, name: str) -> None:
        self.run("volunteer", "join", self.url, "--home", str(self.folder / name), "--label", name)

    def start_volunteer(self, name: str) -> None:
        self._start(name, ["volunteer", "run", "--home", str(self.folder / name), "--threads", "1", "-v"])

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut: nothing gets to say goodbye."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        if name == "coordinator":
            self.start_coordinator()
            self.wait_until_ready()
        else:
            self.start_volunteer(name)

    def run(self, *arguments: str) -> str:
        """A `memgrid` command as the operator; its standard output."""
        token = self.data / "keys" / "operator.token"
        environment = {
            **os.environ,
            "MEMGRID_HOME": str(self.folder / "operator"),
            "MEMGRID_GRID": self.url,
            "MEMGRID_TOKEN": f"@{token}",
        }
        done = subprocess.run([MEMGRID, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"memgrid {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _start(self, name: str, arguments: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [MEMGRID, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )


@contextlib.contextmanager
def grid_of_processes(folder: Path, volunteers: int, *, lease_shortest_s: float = 15.0) -> Iterator[Grid]:
    """A coordinator that is ready, and volunteers that have joined and work; gone when this ends."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(folder, volunteers, lease_shortest_s=lease_shortest_s)
    try:
        grid.start_coordinator()
        grid.wait_until_ready()
        for name in grid.volunteers:
            grid.join(name)
            grid.start_volunteer(name)
        yield grid
    finally:
        grid.close()
