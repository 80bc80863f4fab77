"""Which walls this machine can put around a worker, and the command that puts them there."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from memgrid_volunteer.bounds import Bounds, default_bounds
from memgrid_volunteer.jail import Walls

PROBE_MODULE = "memgrid_volunteer.probe"
_PROBE_LIMIT_S = 20.0
_REASON_CHARS_MAX = 300
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix", "/sys", "/etc/alternatives")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/passwd")
_PROC = ("cpuinfo", "meminfo", "stat", "filesystems", "version", "driver", "sys/kernel", "sys/vm", "self")
"""What libraries read of the system, where other processes are in the same place."""
_PLAIN_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_GPU_NODES = ("nvidia*", "kfd", "dri/renderD*", "dxg")


class Isolation(StrEnum):
    """What keeps a worker from network, files and processes; the strongest first."""

    BUBBLEWRAP = "bubblewrap"
    """A view of its own: no network, no processes, and of all files only Python, what it reads, what it writes."""
    NAMESPACES = "namespaces"
    """No network, no other processes; of files only those, where the kernel has Landlock."""
    FILTERS = "filters"
    """No network and no system calls that reach others; of files only those, where the kernel has Landlock."""
    NONE = "none"
    """Nothing but limits: this system allows no more, or its owner wants no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """What a worker may see of a volunteer's files: `cache` and `inputs` to read, `outputs` and `scratch` to write.

    A unit has a folder of the name of its lease in `inputs` and one in `outputs`.
    """

    cache: Path
    work: Path

    @property
    def inputs(self) -> Path:
        return self.work / "in"

    @property
    def outputs(self) -> Path:
        return self.work / "out"

    @property
    def scratch(self) -> Path:
        """Home, temporary and working folder of the worker; emptied at every start of a volunteer."""
        return self.work / "scratch"

    def make(self) -> None:
        for folder in (self.cache, self.inputs, self.outputs, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """How a level of isolation did when it was tried: `reason` says why it can't be had, and is empty if it can."""

    isolation: Isolation
    reason: str


def command_for(
    isolation: Isolation,
    folders: Folders,
    module: str,
    arguments: Sequence[str] = (),
    *,
    bounds: Bounds | None = None,
) -> list[str]:
    """The command that runs a worker module, with its arguments, behind those walls."""
    walls = _walls(isolation, folders, bounds or default_bounds())
    # -P: a file in the working folder must never be imported instead of a library.
    python = [sys.executable, "-P", "-m", "memgrid_volunteer.jail", walls.to_argument(), module, *arguments]
    if isolation is Isolation.BUBBLEWRAP:
        return [*_bubblewrap(folders), *python]
    if isolation is Isolation.NAMESPACES:
        return [*_namespaces(), *python]
    return python


async def probe(folders: Folders, environment: dict[str, str]) -> Isolation:
    """The strongest isolation that really works here, found out by running something in it."""
    async for tried in try_all(folders, environment):
        if not tried.reason:
            return tried.isolation
    return Isolation.NONE


async def try_all(folders: Folders, environment: dict[str, str]) -> AsyncIterator[Tried]:
    """Each level, the strongest first, and why it can't be had if it can't."""
    folders.make()
    for isolation in (Isolation.BUBBLEWRAP, Isolation.NAMESPACES, Isolation.FILTERS):
        command = command_for(isolation, folders, PROBE_MODULE, [isolation.value, str(folders.work)])
        yield Tried(isolation=isolation, reason=await _why_not(command, environment, folders))


async def _why_not(command: list[str], environment: dict[str, str], folders: Folders) -> str:
    """Empty if the probe ended well in there; else its last words."""
    if sys.platform != "linux":
        return f"{sys.platform} has none of it"
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        cwd=folders.scratch,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_PROBE_LIMIT_S):
            _, told = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"no answer in {_PROBE_LIMIT_S:.0f} s"
    lines = told.decode(errors="replace").strip().splitlines()
    return "" if process.returncode == 0 else (lines or ["it said nothing"])[-1][:_REASON_CHARS_MAX]


def _walls(isolation: Isolation, folders: Folders, bounds: Bounds) -> Walls:
    is_own_view = isolation is Isolation.BUBBLEWRAP
    has_own_users = isolation in (Isolation.BUBBLEWRAP, Isolation.NAMESPACES)
    proc = ["/proc"] if isolation is Isolation.NAMESPACES else [f"/proc/{name}" for name in _PROC]
    readable = (*_SYSTEM, *_SYSTEM_FILES, *proc, *_python_paths(folders), str(folders.cache), str(folders.inputs))
    return Walls(
        is_filtered=isolation is not Isolation.NONE,
        is_sighted=is_own_view or isolation is Isolation.NONE,
        readable=() if is_own_view else readable,
        writable=() if is_own_view else (str(folders.outputs), str(folders.scratch)),
        devices=() if is_own_view else (*_PLAIN_DEVICES, *_gpu_nodes()),
        data_bytes=None if has_gpu() else bounds.data_bytes,
        file_bytes=bounds.disk_bytes,
        open_files=bounds.open_files,
        tasks=bounds.tasks if has_own_users else None,
    )


def _bubblewrap(folders: Folders) -> list[str]:
    command = ["bwrap", "--unshare-user-try", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in (*_SYSTEM, *_SYSTEM_FILES):
        command += ["--ro-bind-try", path, path]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for node in _gpu_nodes():
        command += ["--dev-bind-try", node, node]
    for path in _python_paths(folders):
        command += ["--ro-bind-try", path, path]
    for folder in (folders.cache, folders.inputs):
        command += ["--ro-bind", str(folder), str(folder)]
    for folder in (folders.outputs, folders.scratch):
        command += ["--bind", str(folder), str(folder)]
    # What else could be written is memory, and nobody would count it.
    for place in ("/tmp", "/dev", "/"):
        command += ["--remount-ro", place]
    return [*command, "--chdir", str(folders.scratch)]


def _namespaces() -> list[str]:
    command = ["unshare", "--user", "--map-current-user", "--net", "--pid", "--mount-proc", "--ipc", "--uts"]
    return [*command, "--fork", "--kill-child=SIGKILL"]


def _python_paths(folders: Folders) -> Iterable[str]:
    """Where Python, its libraries and this package lie, shortest first so that nothing is covered up."""
    executable = Path(sys.executable)
    wanted = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(executable.parent), *sys.path}
    wanted |= {str(Path(path).resolve()) for path in wanted if path}
    wanted |= set(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    existing = {path for path in wanted if path and Path(path).is_absolute() and Path(path).exists()}
    # Started in one's home with `python -m`, Python looks for modules in all of it.
    hidden = (Path.home(), folders.work, folders.cache)
    return sorted(path for path in existing if not any(each.is_relative_to(path) for each in hidden))


def has_gpu() -> bool:
    """Whether there are devices of a GPU; whether anything can compute on them, only a worker finds out."""
    return any(_gpu_nodes())


def _gpu_nodes() -> Iterator[str]:
    """Devices that compute; of all others a worker sees those that every program has."""
    for pattern in _GPU_NODES:
        yield from sorted(map(str, Path("/dev").glob(pattern)))
