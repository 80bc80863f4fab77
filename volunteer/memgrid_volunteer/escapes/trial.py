"""Try each escape behind each wall, for real: a hostile worker in the sandbox that units are computed in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memgrid_volunteer.bounds import Bounds
from memgrid_volunteer.escapes.attempts import ATTEMPTS
from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.escapes.worker import THROUGH
from memgrid_volunteer.isolation import Folders, Isolation, has_gpu
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.sandbox import Sandbox

_MODULE = "memgrid_volunteer.escapes.worker"
_BOUNDS = Bounds(memory_bytes=256 << 20, disk_bytes=32 << 20, files=1000, open_files=256, tasks=100, unit_s=8.0)
"""Small, so that it shows soon, and so that what is not refused does little."""
_ENDINGS = (
    ("the worker took", "ended: memory"),
    ("the worker started", "ended: threads"),
    ("the worker wrote", "ended: disk"),
    ("the worker made", "ended: files"),
    ("the unit did not end", "ended: time"),
    # By its own number, or as bubblewrap passes it on.
    ("the worker died with status 7", THROUGH),
    (f"the worker died with status {-signal.SIGSYS}", "SIGSYS"),
    (f"the worker died with status {128 + signal.SIGSYS}", "SIGSYS"),
)
_SETUID_PROGRAMS = ("/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/bin/mount")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one attempt: the error that refused it, or how the worker ended over it."""

    attempt: str
    isolation: Isolation
    answer: str

    @property
    def is_through(self) -> bool:
        return self.answer == THROUGH


def refused_here() -> tuple[str, ...]:
    """The attempts that are to be refused on this machine: beside a GPU's driver anybody may reserve memory."""
    return tuple(name for name in ATTEMPTS if name != "reserve_memory" or not has_gpu())


async def try_escapes(
    isolations: Sequence[Isolation], folder: Path, attempts: Iterable[str] | None = None
) -> AsyncIterator[Result]:
    """One result after another. `folder` must be there, not in /tmp, and empty; it stays so, more or less.

    All that is reached for is made for it, but for the disk, the kernel's memory and one file of the home, which are
    opened and not read.
    """
    names = refused_here() if attempts is None else tuple(attempts)
    folders = Folders(cache=folder / "cache", work=folder / "work")
    folders.make()
    async with _targets(folder) as targets:
        for isolation in isolations:
            sandbox = Sandbox(folders, threads=1, module=_MODULE, isolation=isolation, bounds=_BOUNDS)
            try:
                for name in names:
                    job = _job(folders, name)
                    targets.write(job.unit_dir)
                    outcome = await sandbox.run(job)
                    assert outcome.failure is not None
                    yield Result(attempt=name, isolation=isolation, answer=_in_short(outcome.failure.text))
                    for written in (job.unit_dir, job.out_dir):
                        shutil.rmtree(written, ignore_errors=True)
            finally:
                await sandbox.kill()


def table(results: Iterable[Result]) -> list[list[str]]:
    """A line for each attempt, a column for each isolation, with a head."""
    answers: dict[str, dict[Isolation, str]] = {}
    for result in results:
        answers.setdefault(result.attempt, {})[result.isolation] = result.answer
    columns = [isolation for isolation in Isolation if any(isolation in line for line in answers.values())]
    head = ["escape", *(isolation.value for isolation in columns)]
    lines = [
        [ATTEMPTS[name].title, *(line.get(isolation, "") for isolation in columns)] for name, line in answers.items()
    ]
    return [head, *lines]


def _in_short(text: str) -> str:
    return next((short for begin, short in _ENDINGS if text.startswith(begin)), text)


def _job(folders: Folders, name: str) -> Job:
    job = Job(kind=name, unit_dir=folders.inputs / name, model_dir=folders.cache, out_dir=folders.outputs / name)
    for folder in (job.unit_dir, job.out_dir):
        folder.mkdir(exist_ok=True)
    return job


@contextlib.asynccontextmanager
async def _targets(folder: Path) -> AsyncIterator[Targets]:
    key, ssh_key = folder / "volunteer.key", folder / "home" / ".ssh" / "id_ed25519"
    model, outside = folder / "cache" / "weights", folder / "outside"
    ssh_key.parent.mkdir(parents=True, exist_ok=True)
    outside.mkdir(exist_ok=True)
    for path in (key, ssh_key, model):
        path.write_bytes(secrets.token_bytes(32))
        path.chmod(0o600)
    async with contextlib.AsyncExitStack() as stack:
        tcp = await stack.enter_async_context(
            await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        )
        yield Targets(
            tcp_port=tcp.sockets[0].getsockname()[1],
            udp_port=_bound(stack, socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1],
            nameserver=_nameserver(),
            socket_path=_listening(stack, str(folder / "socket")),
            datagram_path=_bound(stack, socket.AF_UNIX, str(folder / "log")).getsockname(),
            abstract_name=_listening(stack, f"\0memgrid-{secrets.token_hex(8)}").lstrip("\0"),
            key_file=str(key),
            ssh_key=str(ssh_key),
            home_file=_home_file(),
            model_file=str(model),
            outside=str(outside),
            victim_pid=await _victim(stack),
            setuid_program=next((path for path in _SETUID_PROGRAMS if _is_setuid(path)), ""),
            block_device=_block_device(),
            memory_bytes=_BOUNDS.memory_bytes,
            disk_bytes=_BOUNDS.disk_bytes,
            open_files=_BOUNDS.open_files,
        )


def _bound(
    stack: contextlib.AsyncExitStack, family: socket.AddressFamily, address: tuple[str, int] | str
) -> socket.socket:
    made = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    made.bind(address)
    return made


def _listening(stack: contextlib.AsyncExitStack, address: str) -> str:
    made = stack.enter_context(socket.socket(socket.AF_UNIX))
    made.bind(address)
    made.listen()
    return address


async def _victim(stack: contextlib.AsyncExitStack) -> int:
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")

    async def end() -> None:
        # Killed by an attempt, it would have ended before.
        with contextlib.suppress(ProcessLookupError):
            victim.kill()
        await victim.wait()

    stack.push_async_callback(end)
    return victim.pid


def _nameserver() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/etc/resolv.conf").read_text().splitlines():
            if line.startswith("nameserver ") and ":" not in line:
                return line.split()[1]
    return "127.0.0.53"


def _home_file() -> str:
    with contextlib.suppress(OSError):
        for path in sorted(Path.home().iterdir()):
            if path.is_file() and os.access(path, os.R_OK):
                return str(path)
    return ""


def _is_setuid(path: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(Path(path).stat().st_mode & stat.S_ISUID)
    return False


def _block_device() -> str:
    return next((str(path) for path in sorted(Path("/dev").iterdir()) if path.is_block_device()), "")
