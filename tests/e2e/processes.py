"""A grid of real processes on loopback, for tests that kill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from tests import warm

COMMAND_LIMIT_S = 120.0
MEMGRID = str(Path(sys.executable).with_name("memgrid"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Grid:
    """A coordinator and some volunteers; each can be killed and started again under its own name."""

    def __init__(
        self,
        folder: Path,
        volunteers: int,
        *,
        lease_shortest_s: float = 15.0,
        warm_environment: Mapping[str, str] | None = None,
        database: str | None = None,
        coordinators: int = 1,
    ) -> None:
        self.folder = folder
        self.data = folder / "grid"
        self.database = database or f"sqlite:///{self.data / 'memgrid.db'}"
        self.volunteers = [f"volunteer{number}" for number in range(volunteers)]
        # Each has a data folder of its own; they share database, keys and content.
        self.coordinators = ["coordinator", *(f"coordinator{number}" for number in range(2, coordinators + 1))]
        # Fixed ports: volunteers look for a restarted coordinator where it was.
        self._ports = {name: [str(free_port()), str(free_port())] for name in self.coordinators}
        self._lease_shortest_s = lease_shortest_s
        self._is_warm = warm_environment is not None
        # A worker that is forked elsewhere has to say so, which no walls allow.
        self._worker = ["--worker-module", "tests.workers.warm", "--isolation", "none"] if self._is_warm else []
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(warm_environment or {})}
        self._running: dict[str, subprocess.Popen[bytes] | warm.WarmProcess] = {}

    @property
    def url(self) -> str:
        return self.url_of("coordinator")

    def url_of(self, coordinator: str) -> str:
        url: str = json.loads(self._endpoint(coordinator).read_text())["url"]
        return url

    def start_coordinator(self, name: str = "coordinator") -> None:
        http_port, grpc_port = self._ports[name]
        data = self._data(name)
        serve = ["coordinator", "serve", "--data", str(data), "--http-port", http_port, "--grpc-port", grpc_port]
        serve += ["--lease-shortest-s", str(self._lease_shortest_s), "--database", self.database]
        if len(self.coordinators) > 1:
            serve += ["--keys", str(self.data / "keys"), "--blobs", str(self.folder / "blobs")]
        self._endpoint(name).unlink(missing_ok=True)
        self._start(name, serve)

    def wait_until_ready(self, name: str = "coordinator", limit_s: float = 60.0) -> None:
        until = time.monotonic() + limit_s
        while not self._endpoint(name).exists():
            if time.monotonic() > until:
                raise TimeoutError(f"no {name} in {limit_s} s: {self.log(name)[-2000:]}")
            time.sleep(0.05)

    def _data(self, coordinator: str) -> Path:
        return self.folder / coordinator.replace("coordinator", "grid")

    def _endpoint(self, coordinator: str) -> Path:
        return self._data(coordinator) / "endpoint.json"

    def join(self, name: str) -> None:
        """Volunteers are spread over the coordinators."""
        coordinator = self.coordinators[self.volunteers.index(name) % len(self.coordinators)]
        join = ["volunteer", "join", self.url_of(coordinator), "--home", str(self.folder / name), "--label", name]
        self.run(*join, *self._worker)
        # Several share this machine, and would make way for one another.
        (self.folder / name / "volunteer.toml").write_text('preset = "always"\n')

    def start_volunteer(self, name: str) -> None:
        run = ["volunteer", "run", "--home", str(self.folder / name), "--threads", "1", "-v"]
        self._start(name, [*run, *self._worker])

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut: nothing gets to say goodbye."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        if name in self.coordinators:
            self.start_coordinator(name)
            self.wait_until_ready(name)
        else:
            self.start_volunteer(name)

    def run(self, *arguments: str) -> str:
        """A `memgrid` command as the operator; its standard output."""
        token = self.data / "keys" / "operator.token"
        environment = {
            **self._environment,
            "MEMGRID_HOME": str(self.folder / "operator"),
            "MEMGRID_GRID": self.url,
            "MEMGRID_TOKEN": f"@{token}",
        }
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            status = self._spawn(arguments, environment, output, errors).wait(COMMAND_LIMIT_S)
            output.seek(0)
            errors.seek(0)
            assert status == 0, f"memgrid {' '.join(arguments)}: {errors.read().decode(errors='replace')}"
            return output.read().decode()

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
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = self._spawn(arguments, self._environment, log, log)

    def _spawn(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes], errors: IO[bytes]
    ) -> subprocess.Popen[bytes] | warm.WarmProcess:
        if self._is_warm:
            return warm.start(arguments, environment=environment, output=output, errors=errors)
        return subprocess.Popen(
            [MEMGRID, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment
        )


@contextlib.contextmanager
def grid_of_processes(
    folder: Path,
    volunteers: int,
    *,
    lease_shortest_s: float = 15.0,
    warm_environment: Mapping[str, str] | None = None,
    database: str | None = None,
    coordinators: int = 1,
) -> Iterator[Grid]:
    """A coordinator that is ready, and volunteers that have joined and work; gone when this ends.

    With the environment of `tests.warm` all of them start at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid(
        folder,
        volunteers,
        lease_shortest_s=lease_shortest_s,
        warm_environment=warm_environment,
        database=database,
        coordinators=coordinators,
    )
    try:
        for name in grid.coordinators:  # one after the other: the first makes the keys
            grid.start_coordinator(name)
            grid.wait_until_ready(name)
        with ThreadPoolExecutor() as together:
            list(together.map(grid.join, grid.volunteers))
        for name in grid.volunteers:
            grid.start_volunteer(name)
        yield grid
    finally:
        grid.close()
