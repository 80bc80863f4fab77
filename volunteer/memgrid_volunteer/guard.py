"""What a worker really takes, looked at from outside; whoever takes more than its bounds is to be ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from memgrid.text import bytes_text
from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.bounds import Bounds

LOOK_EVERY_S = 0.5
DISK_EVERY_LOOKS = 4
DISK_LAST_BYTES = 64 << 20
"""Of a disk with less than this nobody gets more: its owner needs it, and so does the outbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one look showed; all processes of the worker together."""

    memory_bytes: int
    tasks: int
    disk_bytes: int
    files: int
    disk_free_bytes: int


def excess(usage: Usage, bounds: Bounds) -> Reason | None:
    """What is too much; None when nothing is.

    >>> bounds = Bounds(memory_bytes=4 << 30)
    >>> usage = Usage(memory_bytes=5 << 30, tasks=9, disk_bytes=0, files=0, disk_free_bytes=1 << 40)
    >>> excess(usage, bounds).text
    'the worker took 5.4 GB of memory; it may take 4.3 GB'
    """
    if usage.memory_bytes > bounds.memory_bytes:
        took, most = bytes_text(usage.memory_bytes), bytes_text(bounds.memory_bytes)
        text = f"the worker took {took} of memory; it may take {most}"
        return Reason(code=ReasonCode.OUT_OF_MEMORY, text=text)
    text = ""
    if usage.tasks > bounds.tasks:
        text = f"the worker started {usage.tasks} threads; it may start {bounds.tasks}"
    elif usage.disk_bytes > bounds.disk_bytes:
        text = f"the worker wrote {bytes_text(usage.disk_bytes)}; it may write {bytes_text(bounds.disk_bytes)}"
    elif usage.files > bounds.files:
        text = f"the worker made {usage.files} files; it may make {bounds.files}"
    elif usage.disk_free_bytes < DISK_LAST_BYTES and usage.disk_bytes:
        text = f"the disk has only {bytes_text(usage.disk_free_bytes)} left"
    return Reason(code=ReasonCode.UNIT_FAILED, text=text) if text else None


async def watch(pid: int, written: tuple[Path, ...], bounds: Bounds) -> Reason | None:
    """What a worker takes too much of, as soon as it does; None when it has ended before.

    `pid` is the first of its processes, `written` are the folders that it may write into.
    """
    looks = 0
    disk_bytes, files, free_bytes = 0, 0, 1 << 62
    while psutil.pid_exists(pid):
        if looks % DISK_EVERY_LOOKS == 0:
            disk_bytes, files, free_bytes = await asyncio.to_thread(_disk, written)
        memory_bytes, tasks = _processes(pid)
        usage = Usage(
            memory_bytes=memory_bytes, tasks=tasks, disk_bytes=disk_bytes, files=files, disk_free_bytes=free_bytes
        )
        if (reason := excess(usage, bounds)) is not None:
            return reason
        looks += 1
        await asyncio.sleep(LOOK_EVERY_S)
    return None


def _processes(pid: int) -> tuple[int, int]:
    """Memory and threads of a process and all that it started."""
    memory_bytes = tasks = 0
    for each in family(pid):
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            process = psutil.Process(each)
            memory_bytes += _memory_bytes(process)
            tasks += process.num_threads()
    return memory_bytes, tasks


def family(pid: int) -> list[int]:
    """A process and all that it started, as far as they live. Looks at no others: there may be thousands."""
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += _children(found[-1])
    return found


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    try:
        files = [task / "children" for task in tasks.iterdir()]
        return [int(child) for file in files for child in file.read_text().split()]
    except OSError:
        # It has ended, or this system tells it otherwise.
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []


def _memory_bytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return int(process.memory_info().rss)
    # Pages of mapped files are the system's to drop; a model that is only read would count in full.
    kept = [line for line in status.read_text().splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(int(line.split()[1]) for line in kept) * 1024


def _disk(folders: tuple[Path, ...]) -> tuple[int, int, int]:
    """Bytes and files in folders, and what is free beside them. Nothing is followed out of them."""
    size_bytes = files = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(OSError):
                    size_bytes += _taken_bytes((Path(place) / name).lstat())
                    files += 1
    usage = psutil.disk_usage(str(folders[0]))
    return size_bytes, files, int(usage.free)


def _taken_bytes(facts: os.stat_result) -> int:
    """What a file takes of the disk, not how long it says it is; where that is not told, its length."""
    return facts.st_blocks * 512 if hasattr(facts, "st_blocks") else facts.st_size
