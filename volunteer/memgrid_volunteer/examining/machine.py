"""The machine: versions, drivers, memory, what the worker may compute on, and behind which walls."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from memgrid.errors import InternalError
from memgrid.findings import Finding, Level
from memgrid.text import bytes_text
from memgrid_volunteer import landlock
from memgrid_volunteer.home import Home
from memgrid_volunteer.host import default_threads
from memgrid_volunteer.isolation import Folders, Isolation, Tried, try_all
from memgrid_volunteer.kinds.job import DeviceId, Hello
from memgrid_volunteer.sandbox import WORKER_MODULE, Sandbox, environment
from memgrid_volunteer.status import VolunteerStatus

_LIBRARIES = ("torch", "transformers", "accelerate", "grpcio", "cryptography", "psutil", "nvidia-ml-py", "jeepney")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_HOW_TO_GET = {
    Isolation.BUBBLEWRAP: "install bubblewrap; where it is, unprivileged user namespaces may be forbidden:"
    " sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns",
    Isolation.NAMESPACES: "util-linux has unshare; unprivileged user namespaces may be forbidden",
    Isolation.FILTERS: "the kernel has to allow seccomp filters, on x86_64 or aarch64",
}


def machine() -> Iterator[Finding]:
    """What everybody asks first."""
    text = f"memgrid {version('memgrid')}, Python {platform.python_version()}, {platform.platform()}"
    yield Finding(level=Level.FACT, about="machine", text=text)
    memory = psutil.virtual_memory()
    text = (
        f"{os.cpu_count()} processors, {bytes_text(memory.total)} memory, {bytes_text(memory.available)} of it free"
    )
    yield Finding(level=Level.FACT, about="machine", text=text)
    libraries = ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    yield Finding(level=Level.FACT, about="libraries", text=libraries)
    if _DRIVER_FILE.exists():
        yield Finding(level=Level.FACT, about="driver", text=_DRIVER_FILE.read_text().splitlines()[0].strip())
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        advice = "let an ordinary user run it: whatever gets out of the worker is then not the machine's master"
        yield Finding(level=Level.WARNING, about="user", text="this is root", advice=advice)


def walls(home: Home) -> Iterator[Finding]:
    """The isolation that holds, and why none stronger does."""
    with tempfile.TemporaryDirectory(dir=home.folder, prefix=".doctor-") as folder:
        tried = asyncio.run(_tried(Path(folder)))
    holding = next((each.isolation for each in tried if not each.reason), Isolation.NONE)
    weaker = [each for each in tried if each.reason and list(Isolation).index(each.isolation) < _rank(holding)]
    reasons = "; ".join(f"no {each.isolation}: {each.reason}" for each in weaker)
    advice = " ".join(_HOW_TO_GET[each.isolation] for each in weaker[:1])
    level = Level.OK if holding is Isolation.BUBBLEWRAP else Level.WARNING
    level = Level.BAD if holding is Isolation.NONE and platform.system() == "Linux" else level
    yield Finding(
        level=level, about="isolation", text=f"{holding}" + (f" ({reasons})" if reasons else ""), advice=advice
    )
    known = landlock.version()
    if holding in (Isolation.NAMESPACES, Isolation.FILTERS):
        text = f"Landlock {known} hides files" if known else "no Landlock: the worker sees the user's files"
        yield Finding(level=Level.OK if known else Level.WARNING, about="isolation", text=text)


def worker(home: Home, module: str = WORKER_MODULE) -> Iterator[Finding]:
    """What a worker finds behind its walls: it is started as for a unit, and ended again.

    Beside a volunteer that runs none is started: devices may bear one only, and what its workers found is known.
    """
    if home.is_running:
        for known in VolunteerStatus.from_json(home.status()).devices:
            yield _device(known.device_id, known.name, known.memory_bytes, known.numerics_class)
        return
    with tempfile.TemporaryDirectory(dir=home.folder, prefix=".doctor-") as folder:
        try:
            hello = asyncio.run(_hello(home, Path(folder), module))
        except InternalError as error:
            advice = "the same by hand, without walls: memgrid volunteer run --once --isolation none -v"
            yield Finding(level=Level.BAD, about="worker", text=str(error), advice=advice)
            return
    for device in hello.devices:
        facts = device.facts
        yield _device(device.device_id, facts.name, facts.memory_bytes, facts.numerics_class)
    if _DRIVER_FILE.exists() and not any(device.facts.kind == "cuda" for device in hello.devices):
        text = "there is an NVIDIA driver, and the worker finds no GPU"
        advice = (
            "is this torch built with CUDA, for this driver? python -c 'import torch; torch.zeros(1).cuda()';"
            " if that works, are the walls in its way? memgrid volunteer run --once --isolation none"
        )
        yield Finding(level=Level.BAD, about="device", text=text, advice=advice)


def _device(device_id: DeviceId, name: str, memory_bytes: int, numerics_class: str) -> Finding:
    text = f"{device_id}: {name}, {bytes_text(memory_bytes)}, {numerics_class}"
    return Finding(level=Level.OK, about="device", text=text)


async def _tried(folder: Path) -> list[Tried]:
    folders = Folders(cache=folder / "cache", work=folder / "work")
    return [each async for each in try_all(folders, environment(folders.scratch, 1))]


async def _hello(home: Home, work: Path, module: str) -> Hello:
    sandbox = Sandbox(Folders(cache=home.cache, work=work), threads=default_threads(), module=module)
    try:
        return await sandbox.start()
    finally:
        await sandbox.kill()


def _rank(isolation: Isolation) -> int:
    return list(Isolation).index(isolation)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
