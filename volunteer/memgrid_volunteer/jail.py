"""The last thing that runs before a worker does: limits and walls that a process can only put on itself."""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from memgrid_volunteer import landlock, seccomp

_NICENESS = 10
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES = 64
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """What the jail is told: travels as one argument."""

    is_filtered: bool
    """Whether system calls are."""
    is_sighted: bool
    """Whether the worker may see all files that the walls around it leave; else only those below."""
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    data_bytes: int | None
    """None where a driver reserves more than anybody will touch."""
    file_bytes: int
    open_files: int
    tasks: int | None
    """None where the system would count the user's other processes, too."""

    def to_argument(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_argument(argument: str) -> Walls:
        return Walls(**json.loads(argument))


def main() -> None:
    """`python -m memgrid_volunteer.jail WALLS MODULE [ARGUMENT…]`: bind this process, then become MODULE."""
    walls, module = Walls.from_argument(sys.argv[1]), sys.argv[2]
    _limit(walls)
    if sys.platform == "linux":
        _drop_privileges()
        _hide_files(walls)
        if walls.is_filtered:
            # Last: it refuses what the others are made with.
            seccomp.restrict()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _limit(walls: Walls) -> None:
    # Whoever sits at this machine comes first.
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    if sys.platform == "win32":
        return
    import resource

    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, walls.file_bytes),
        (resource.RLIMIT_NOFILE, walls.open_files),
    ]
    if walls.data_bytes is not None:
        wanted.append((resource.RLIMIT_DATA, walls.data_bytes))
    if walls.tasks is not None:
        wanted.append((resource.RLIMIT_NPROC, walls.tasks))
    for limit, most in wanted:
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _drop_privileges() -> None:
    """Whatever the user may, the worker may not; and no program it could start gets anything back."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Closing standard input ends a worker too; this also ends one that hangs in native code.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "the worker's capabilities can't be dropped")


def _hide_files(walls: Walls) -> None:
    if not walls.is_sighted:
        landlock.restrict(
            readable=map(Path, walls.readable),
            writable=map(Path, walls.writable),
            devices=map(Path, walls.devices),
        )


if __name__ == "__main__":
    main()
