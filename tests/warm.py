"""Processes forked from one that has imported everything, for tests that start the same ones again and again.

A volunteer and its worker spend five seconds of processor time on imports, a coordinator two; a test that kills them
twenty times would do little else. What runs here are real processes of their own with the real entry points, killed
with SIGKILL like any other. Starting from nothing, and the walls around a worker, have tests elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

SOCKET_VARIABLE = "PYTORCH_WARM_PROCESSES"
"""Of the few variables that a worker is given, those that begin like this are."""
_REQUEST_BYTES_MAX = 128 * 1024
_IMPORTED = (
    "transformers.models.llama.modeling_llama",
    "memgrid.cli.commands",
    "memgrid.distill.audit",
    "memgrid_coordinator.app",
    "memgrid_coordinator.cli",
    "memgrid_volunteer.cli",
    "memgrid_volunteer.worker",
)
_GO = b"g"
"""Who asked knows the process by now, however soon that ends."""
_ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def warm_processes(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `start` and warm workers work; it ends with this block."""
    place = folder / "warm.sock"
    # Whatever Python may import, a worker may see behind its walls: so it sees the socket, too.
    paths = [str(_ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {SOCKET_VARIABLE: str(place), "PYTHONPATH": os.pathsep.join(paths)}
    environment = {**os.environ, **changed, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the warm processes did not start"
        yield changed
    finally:
        server.kill()
        server.communicate()


class WarmProcess:
    """One process that was started so; the few methods of `subprocess.Popen` that tests use; `wait` once."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = int.from_bytes(connection.recv(4), "big")
        self._handle = os.pidfd_open(self.pid)
        connection.sendall(_GO)

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError when it is gone."""
        signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, -1 if it was killed; raises TimeoutExpired."""
        waiting = select.poll()
        waiting.register(self._handle, select.POLLIN)
        if not waiting.poll(None if timeout is None else timeout * 1e3):
            raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0)
        os.close(self._handle)
        with self._connection, contextlib.suppress(OSError):
            if status := self._connection.recv(1):
                return status[0]
        return -1


def start(
    arguments: Sequence[str], *, environment: Mapping[str, str], output: IO[bytes] | int, errors: IO[bytes] | int
) -> WarmProcess:
    """Start `memgrid ARGUMENTS…`."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(environment[SOCKET_VARIABLE])
    nothing = os.open(os.devnull, os.O_RDONLY)
    numbers = [stream if isinstance(stream, int) else stream.fileno() for stream in (output, errors)]
    _ask(connection, "memgrid", arguments, environment, [nothing, *numbers])
    os.close(nothing)
    return WarmProcess(connection)


def stand_in(entry: str) -> None:
    """Hand this process's standard streams to a warm one, and be there for as long as it is."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET_VARIABLE])
        _ask(connection, entry, sys.argv[1:], os.environ, [0, 1, 2])
        for stream in (0, 1, 2):  # the pipes end when the other's ends do
            os.close(stream)
        connection.recv(4)
        connection.sendall(_GO)
        connection.recv(1)


def _ask(
    connection: socket.socket,
    entry: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    streams: Sequence[int],
) -> None:
    request = {
        "entry": entry,
        "arguments": list(arguments),
        "folder": str(Path.cwd()),
        "environment": dict(environment),
        "niceness": os.nice(0),
    }
    socket.send_fds(connection, [json.dumps(request).encode()], list(streams))


def serve(place: str) -> None:
    """Fork a process for everyone who connects."""
    for name in _IMPORTED:
        importlib.import_module(name)
    from memgrid.cli.main import main as memgrid
    from memgrid_volunteer.worker import main as worker

    entries: dict[str, Callable[[], object]] = {"memgrid": memgrid, "worker": worker}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: let the system forget them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(16)
        os.write(1, b"ready\n")
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _become(connection, entries)
            connection.close()


def _become(connection: socket.socket, entries: Mapping[str, Callable[[], object]]) -> None:
    """Be the process that was asked for; never returns."""
    status = 1
    try:
        request, streams, _, _ = socket.recv_fds(connection, _REQUEST_BYTES_MAX, 3)
        asked = json.loads(request)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.setsid()
        os.nice(asked["niceness"] - os.nice(0))
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = [asked["entry"], *asked["arguments"]]
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0, "r"), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        connection.sendall(os.getpid().to_bytes(4, "big"))
        connection.recv(1)
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        entries[asked["entry"]]()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([status]))
        os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """Whoever asked for this process is gone: so is it."""
    connection.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(os.environ[SOCKET_VARIABLE])
