"""Functions for the engine tests; in a module of their own, because other processes import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from memgrid.errors import DigestMismatchError
from memgrid.kinds.refusal import RefusedError
from memgrid.units import ReasonCode


def pid() -> int:
    return os.getpid()


def add(one: int, *, other: int) -> int:
    return one + other


def raise_mismatch() -> None:
    raise DigestMismatchError("blob x: expected y")


def raise_refusal() -> None:
    raise RefusedError(ReasonCode.WRONG_SHAPE, "l0.k: too short")


def raise_bug() -> None:
    raise ZeroDivisionError("a bug")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_the_first_time(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        die()
    return "second"


def mark_and_wait(mark: Path, wait_s: float) -> str:
    """Say in a file that we run, and where; then be busy for a while."""
    mark.with_suffix(".part").write_text(str(os.getpid()))
    mark.with_suffix(".part").rename(mark)
    time.sleep(wait_s)
    return "done"
