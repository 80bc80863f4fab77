"""How much of the machine one worker may take, whatever it computes."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

MEMORY_SHARE = 0.9
"""Of the machine's memory: beyond it the system itself begins to swap, and its owner to notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Beyond any of them the kernel refuses, or the supervisor ends the worker and says why."""

    memory_bytes: int
    """Resident memory of its own and shared memory; mapped files, which the system can drop, don't count."""
    disk_bytes: int = 64 << 30
    """All that a worker writes: outputs of its units, and what it puts into its scratch folder."""
    files: int = 10_000
    """Files that it may make."""
    open_files: int = 1024
    tasks: int = 2048
    """Threads; it may start no process in any case. CUDA alone starts some dozens for each device."""
    unit_s: float = 24 * 3600.0
    """No unit is meant to take so long: it hangs."""

    @property
    def data_bytes(self) -> int:
        """Of RLIMIT_DATA, which counts what is reserved to be written, touched or not.

        Stacks of threads and arenas of allocators are reserved in full: a worker that has imported all it needs
        reserves 1.34 times what it touches, with SmolLM2 in single precision 1.14 times (x86-64, two threads, torch
        2.13). So the kernel's limit stands a third higher, and 2 GiB. Drivers of GPUs reserve as they like: beside
        them nothing is limited beforehand, and what is touched is watched.
        """
        return self.memory_bytes * 4 // 3 + (2 << 30)


def default_bounds() -> Bounds:
    """What a worker may take of this machine."""
    return Bounds(memory_bytes=int(MEMORY_SHARE * psutil.virtual_memory().total))
