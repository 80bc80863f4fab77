"""Ways to take all that a machine has."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time

from memgrid_volunteer.escapes.targets import Targets
from memgrid_volunteer.kinds.job import Job

_PIECE_BYTES = 4 << 20
_PIECE_S = 0.01
"""Slow enough to be seen, for where nothing stops it."""
_MANY = 1_000_000
_FILES_MADE = 2500


_NO_RESERVE = 0x4000
"""MAP_NORESERVE: else the system itself refuses more than there is."""


def reserve_memory(targets: Targets, job: Job) -> None:
    """Not touched, so it costs nobody anything yet."""
    mmap.mmap(-1, 1 << 44, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE).close()


def fill_memory(targets: Targets, job: Job) -> None:
    kept: list[bytearray] = []
    while len(kept) * _PIECE_BYTES < 4 * targets.memory_bytes:
        kept.append(bytearray(os.urandom(1024)) * (_PIECE_BYTES // 1024))
        time.sleep(_PIECE_S)


def fill_shared_memory(targets: Targets, job: Job) -> None:
    size = 4 * targets.memory_bytes
    shared = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for start in range(0, size, _PIECE_BYTES):
        shared[start : start + _PIECE_BYTES] = bytes(_PIECE_BYTES)
        time.sleep(_PIECE_S)


def make_memory_file(targets: Targets, job: Job) -> None:
    os.close(os.memfd_create("hidden"))


def fill_disk(targets: Targets, job: Job) -> None:
    for number in range(16 * targets.disk_bytes // _PIECE_BYTES):
        (job.out_dir / f"piece-{number}").write_bytes(os.urandom(_PIECE_BYTES))
        time.sleep(10 * _PIECE_S)


def write_endless_file(targets: Targets, job: Job) -> None:
    with (job.out_dir / "endless").open("wb") as file:
        file.truncate(2 * targets.disk_bytes)


def make_files(targets: Targets, job: Job) -> None:
    for number in range(_FILES_MADE):
        (job.out_dir / f"file-{number}").touch()
    time.sleep(20)


def open_files(targets: Targets, job: Job) -> None:
    handles = []
    try:
        for _ in range(targets.open_files):
            handles.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for handle in handles:
            os.close(handle)


def start_threads(targets: Targets, job: Job) -> None:
    # Their stacks would run into another bound first.
    threading.stack_size(64 << 10)
    is_over = threading.Event()
    try:
        for _ in range(_MANY):
            threading.Thread(target=is_over.wait, args=(20,), daemon=True).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no more threads") from None
    finally:
        is_over.set()


def run_for_ever(targets: Targets, job: Job) -> None:
    while True:
        time.sleep(1)
