"""The last thing that runs before a worker does: limits that a process can only put on itself."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_FILE_BYTES_MAX = 64 << 30
_OPEN_FILES_MAX = 1024
_NICENESS = 10
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """`python -m memgrid_volunteer.jail MODULE [ARGUMENT…]`: bind this process, then become MODULE."""
    module = sys.argv[1]
    _limit()
    sys.argv = [module, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _limit() -> None:
    # Whoever sits at this machine comes first.
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    if sys.platform == "win32":
        return
    import resource

    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _FILE_BYTES_MAX),
        (resource.RLIMIT_NOFILE, _OPEN_FILES_MAX),
    ):
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Closing standard input ends a worker too; this also ends one that hangs in native code.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main()
