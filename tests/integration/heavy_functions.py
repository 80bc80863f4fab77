"""Functions for the engine tests; in a module of their own, because other processes import them by name."""

from __future__ import annotations

import os
import signal
import sys
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


def mark_and_wait_for(folder: Path, name: str, gate: Path) -> str:
    """Say in a file of our own that we run, and on which node of Ray, if any; return when there is a gate."""
    began = folder / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
    began.with_suffix(".part").write_text(node_id() if "ray" in sys.modules else "")
    began.with_suffix(".part").rename(began)
    while not gate.exists():
        time.sleep(0.02)
    return name


def node_id() -> str:
    """The node of Ray that this process is of."""
    import ray

    found: str = ray.get_runtime_context().get_node_id()
    return found


def note_and_die(log: Path) -> None:
    _note(log)
    die()


def note_and_fail(log: Path) -> None:
    _note(log)
    raise TimeoutError("a server did not answer")


def measure(content: Packed) -> int:
    return len(content.content)


class Packed:
    """Content that counts how often it was pickled in this process."""

    times = 0

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[type[Packed], tuple[bytes]]:
        Packed.times += 1
        return Packed, (self.content,)


def _note(log: Path) -> None:
    with log.open("a") as file:
        file.write(".")
