"""What a unit left on another machine, fetched to where a worker of this one would have left it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from memgrid.errors import DigestMismatchError, InvalidError
from memgrid.log import get_logger
from memgrid.text import bytes_text
from memgrid.units import BlobRef
from memgrid_volunteer.bounds import Bounds
from memgrid_volunteer.cluster.words import ARRIVING, PACKED
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kept import KEPT_BYTES_MAX
from memgrid_volunteer.kinds.job import SKETCH_FILE
from memgrid_volunteer.outputs import output_names
from memgrid_volunteer.packing import unpack

Fetch = Callable[[Prepared, BlobRef, Path], Awaitable[None]]
"""Brings one file to a place, and checks its digest."""
_DISK_RESERVE_BYTES = 64 << 20

log = get_logger(__name__)


async def outputs(prepared: Prepared, files: Sequence[BlobRef], fetch: Fetch) -> None:
    """Fetch a finished unit's outputs. Raises MemgridError when that fails, OSError when this disk is full."""
    allowed = {*output_names(prepared.offer.spec), SKETCH_FILE}
    _look_at(files, allowed, most_bytes=Bounds(memory_bytes=0).disk_bytes, place=prepared.folders.work)
    place = _out_of_sight(prepared)
    try:
        for blob in files:
            await fetch(prepared, blob, place / blob.name)
        _lay_down(place, prepared)
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def states(prepared: Prepared, files: Sequence[BlobRef], fetch: Fetch) -> None:
    """Fetch what was committed of a unit that was cut off; where that fails, what was here of it before stays."""
    place, key = _out_of_sight(prepared), prepared.offer.unit_key
    try:
        _look_at(files, {PACKED}, most_bytes=KEPT_BYTES_MAX, place=prepared.folders.work)
        await fetch(prepared, files[0], place / PACKED)
        line = await asyncio.to_thread(unpack, place / PACKED, prepared.offer.spec, place / "unpacked")
        _lay_down(place / "unpacked", prepared)
        log.info("half-done unit fetched", unit_key=key, done=line.done)
    except (InvalidError, DigestMismatchError, OSError) as error:
        log.warning("half-done unit not fetched", unit_key=key, error=str(error))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _out_of_sight(prepared: Prepared) -> Path:
    """A new folder that no worker sees: one could lay links where files are to be written."""
    place = prepared.folders.work / ARRIVING / prepared.job.unit_dir.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _lay_down(place: Path, prepared: Prepared) -> None:
    shutil.rmtree(prepared.job.out_dir, ignore_errors=True)
    place.rename(prepared.job.out_dir)


def _look_at(files: Sequence[BlobRef], allowed: set[str], *, most_bytes: int, place: Path) -> None:
    """Names and sizes before anything is fetched."""
    names = [blob.name for blob in files]
    if not set(names) <= allowed or len(set(names)) < len(names):
        raise InvalidError(f"a unit of this kind does not leave {', '.join(names)[:200]}")
    if min((blob.size_bytes for blob in files), default=0) < 0:
        raise InvalidError("a file can't have less than no bytes")
    size_bytes = sum(blob.size_bytes for blob in files)
    if size_bytes > most_bytes:
        raise InvalidError(f"it left {bytes_text(size_bytes)}; a unit may leave {bytes_text(most_bytes)}")
    if shutil.disk_usage(place).free < size_bytes + _DISK_RESERVE_BYTES:
        raise OSError(28, "No space left on device")
