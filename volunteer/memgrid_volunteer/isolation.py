"""Which walls this machine can put around a worker, and the command that puts them there."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_PROBE_LIMIT_S = 20.0
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix", "/sys", "/etc/alternatives")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/passwd")
_GPU_NODES = ("nvidia*", "kfd", "dri/renderD*", "dxg")


class Isolation(StrEnum):
    """What keeps a worker from network and files."""

    BUBBLEWRAP = "bubblewrap"
    """No network, and of all files only Python, the cache (read only) and the folder of its units."""
    NAMESPACES = "namespaces"
    """No network; files as the user has them."""
    NONE = "none"
    """Nothing but limits: this system allows no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """What a worker may see of a volunteer's files: the cache to read, its units' folder to write."""

    cache: Path
    work: Path


def command_for(isolation: Isolation, folders: Folders, module: str, arguments: Sequence[str] = ()) -> list[str]:
    """The command that runs a worker module, with its arguments, behind those walls."""
    # -P: a file in the working folder must never be imported instead of a library.
    python = [sys.executable, "-P", "-m", "memgrid_volunteer.jail", module, *arguments]
    if isolation is Isolation.BUBBLEWRAP:
        return [*_bubblewrap(folders), *python]
    if isolation is Isolation.NAMESPACES:
        return [*_namespaces(), *python]
    return python


async def probe(folders: Folders, environment: dict[str, str]) -> Isolation:
    """The strongest isolation that really works here, found out by running something in it."""
    for isolation in (Isolation.BUBBLEWRAP, Isolation.NAMESPACES):
        if await _works(command_for(isolation, folders, "memgrid_volunteer.probe"), environment):
            return isolation
    return Isolation.NONE


async def _works(command: list[str], environment: dict[str, str]) -> bool:
    if sys.platform != "linux" or shutil.which(command[0]) is None:
        return False
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_PROBE_LIMIT_S):
            return await process.wait() == 0
    except TimeoutError:
        process.kill()
        await process.wait()
        return False


def _bubblewrap(folders: Folders) -> list[str]:
    command = ["bwrap", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    command += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in (*_SYSTEM, *_SYSTEM_FILES):
        command += ["--ro-bind-try", path, path]
    command += ["--proc", "/proc", "--tmpfs", "/tmp"]
    command += ["--dev-bind", "/dev", "/dev"] if _has_gpu() else ["--dev", "/dev"]
    for path in _python_paths():
        command += ["--ro-bind-try", path, path]
    command += ["--ro-bind", str(folders.cache), str(folders.cache)]
    command += ["--bind", str(folders.work), str(folders.work), "--chdir", str(folders.work)]
    return command


def _namespaces() -> list[str]:
    command = ["unshare", "--user", "--map-current-user", "--net", "--pid", "--mount-proc"]
    return [*command, "--fork", "--kill-child=SIGKILL"]


def _python_paths() -> Iterable[str]:
    """Where Python, its libraries and this package lie, shortest first so that nothing is covered up."""
    executable = Path(sys.executable)
    wanted = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(executable.parent), *sys.path}
    wanted |= {str(Path(path).resolve()) for path in wanted if path}
    wanted |= set(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    existing = {path for path in wanted if path and Path(path).is_absolute() and Path(path).exists()}
    return sorted(existing - {"/"})


def _has_gpu() -> bool:
    return any(any(Path("/dev").glob(pattern)) for pattern in _GPU_NODES)
