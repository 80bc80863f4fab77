"""What this machine is, as the grid is told."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import psutil

from memgrid.units import DeviceFacts, HostFacts
from memgrid_volunteer.isolation import Isolation


def host_facts(devices: tuple[DeviceFacts, ...], isolation: Isolation) -> HostFacts:
    """`devices` come from the worker, for only that one knows torch."""
    return HostFacts(
        os=f"{platform.system()} {platform.release()}"[:200],
        arch=platform.machine(),
        cpu_count=os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total),
        devices=devices,
        client_version=version("memgrid"),
        isolation=isolation.value,
    )


def default_threads() -> int:
    """How many threads a worker computes with: $OMP_NUM_THREADS, else one a core."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 else os.cpu_count() or 1
