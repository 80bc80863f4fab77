"""Which processes are ours: what a worker does is nobody else's load."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Linux gives the first namespace of a system this number (PROC_PID_INIT_INO)."""


def family_of(pid: int) -> frozenset[int]:
    """A process with all it has started; empty when there is none."""
    try:
        process = psutil.Process(pid)
        return frozenset({pid, *(child.pid for child in process.children(recursive=True))})
    except psutil.Error:
        return frozenset()


def own_pids() -> frozenset[int]:
    return family_of(os.getpid())


def sees_all_pids(link: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether pids mean the same here as to a driver; inside most containers they don't."""
    try:
        return os.readlink(link) == _INITIAL_PID_NAMESPACE  # noqa: PTH115 - it is no path that it points at
    except OSError:
        return True
