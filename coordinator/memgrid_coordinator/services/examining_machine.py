"""What a diagnosis reads from the machine: versions, limits, disks, folders and their modes."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from memgrid.findings import Finding, Level
from memgrid.text import bytes_text
from memgrid_coordinator.policy import health
from memgrid_coordinator.settings import Settings

_LIBRARIES = (
    "grpcio",
    "protobuf",
    "aiohttp",
    "sqlalchemy",
    "numpy",
    "torch",
    "transformers",
    "peft",
    "ray",
    "psycopg",
)
_NEEDED_KEYS = {
    "grid.key": "signs cubes and is the grid's name",
    "token.key": "seals volunteers' tokens",
    "operator.secret": "is the owner's token",
}
_LOG_LARGE_BYTES = 1 << 30
_INODES_FEW = 10_000


def machine() -> Iterator[Finding]:
    """What everybody asks first."""
    found = f"memgrid {version('memgrid')}, Python {platform.python_version()}, {platform.platform()}"
    yield Finding(level=Level.FACT, about="machine", text=found)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{os.cpu_count()} processors, {bytes_text(memory_bytes)} memory"
    yield Finding(level=Level.FACT, about="machine", text=text)
    libraries = [f"{name} {_version(name)}" for name in _LIBRARIES]
    text = ", ".join([*libraries, f"SQLite {sqlite3.sqlite_version}"])
    yield Finding(level=Level.FACT, about="libraries", text=text)
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # `serve` raises its limit as far as it may.
    yield health.open_files(limit if most == resource.RLIM_INFINITY else most)


def folder(settings: Settings) -> Iterator[Finding]:
    """Whether the data folder can be written, how fast, and how much fits in it."""
    yield Finding(level=Level.FACT, about="data folder", text=str(settings.data))
    try:
        yield health.sync_time(_sync_s(settings.data))
    except OSError as error:
        text = f"{settings.data} can't be written: {error.strerror}"
        advice = "the coordinator must own the folder, and its disk must be mounted to be written"
        yield Finding(level=Level.BAD, about="data folder", text=text, advice=advice)
    usage = shutil.disk_usage(settings.data)
    yield health.disk("data disk", free_bytes=usage.free, total_bytes=usage.total)
    if settings.blobs_url is None and settings.blobs.exists():
        content = shutil.disk_usage(settings.blobs)
        if (content.total, content.free) != (usage.total, usage.free):
            yield health.disk("content disk", free_bytes=content.free, total_bytes=content.total)
    inodes = os.statvfs(settings.data)
    if inodes.f_files and inodes.f_favail < _INODES_FEW:
        text = f"room for {inodes.f_favail} more files only"
        yield Finding(level=Level.BAD, about="data disk", text=text, advice="the file system has no inodes left")


def keys(settings: Settings) -> Iterator[Finding]:
    """Whether all are there, and nobody else can read them."""
    missing = [f"{name}, which {what}" for name, what in _NEEDED_KEYS.items() if not (settings.keys / name).is_file()]
    if missing:
        text = f"missing: {'; '.join(missing)}"
        advice = "bring them back from a backup before the next start, which would make others"
        yield Finding(level=Level.BAD, about="keys", text=text, advice=advice)
    private = [path for path in settings.keys.iterdir() if path.name != "tls.crt"]
    wide = [path.name for path in private if _others_may_read(path)]
    if wide and _others_may_read(settings.keys):
        text = f"others on this machine can read {', '.join(sorted(wide))}"
        advice = f"chmod 700 {settings.keys}; chmod 600 {settings.keys}/*; if others were there, give new tokens"
        yield Finding(level=Level.BAD, about="keys", text=text, advice=advice)
    elif not missing:
        yield Finding(level=Level.OK, about="keys", text="all there, and readable by their owner only")


def database_file(path: Path) -> Iterator[Finding]:
    """The size of a SQLite file, and of the log beside it."""
    log = path.with_name(path.name + "-wal")
    log_bytes = log.stat().st_size if log.exists() else 0
    text = f"{bytes_text(path.stat().st_size)}, its log {bytes_text(log_bytes)}"
    if log_bytes > _LOG_LARGE_BYTES:
        advice = "some program keeps a transaction open on it; the log can't be emptied meanwhile"
        yield Finding(level=Level.WARNING, about="database", text=text, advice=advice)
    else:
        yield Finding(level=Level.FACT, about="database", text=text)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _sync_s(folder: Path) -> float:
    """How long it takes until a small file is on disk."""
    path = folder / f".doctor-{os.getpid()}"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            begun = time.perf_counter()  # a duration, not a time of day
            os.write(handle, bytes(4096))
            os.fsync(handle)
            return time.perf_counter() - begun
        finally:
            os.close(handle)
    finally:
        path.unlink(missing_ok=True)


def _others_may_read(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IXGRP | stat.S_IXOTH))
