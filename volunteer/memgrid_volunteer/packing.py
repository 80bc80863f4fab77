"""A half-done unit as one file that can travel: its committed files side by side, each as bytes, in safetensors form.

Nothing in a packed unit is believed: names and sizes are looked at before anything is written, and what the files say
is for the unit's kind to find out, as it does after a restart (`kinds/committed.py`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from memgrid.digest import Digest
from memgrid.errors import InvalidError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import TrainSpec, parse_spec, unit_key_of
from memgrid_volunteer.kinds.committed import COMMITTED_FILE, PART_NAME, Committed, read_committed
from memgrid_volunteer.outputs import output_names

PACKED_FORMAT = "memgrid.checkpoint.v1"
_HEADER_BYTES_MAX = 1 << 20
_FILES_MAX = 4096
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A packed unit, and what its line says of it."""

    path: Path
    digest: Digest
    size_bytes: int
    line: Committed


def packed_bytes(place: Path, spec: bytes) -> int:
    """About what `pack` would make of a folder; raises InvalidError like it."""
    names, _ = _contents(place, spec)
    return sum((place / name).stat().st_size for name in names)


def pack(place: Path, spec: bytes, target: Path) -> Packed:
    """Write what a folder holds of a half-done unit into one file; takes as long as the disk does.

    Raises InvalidError where nothing whole has been committed, OSError when the disk does not take it.
    """
    names, line = _contents(place, spec)
    header = _header(unit_key_of(spec), [(name, (place / name).stat().st_size) for name in names])
    hashed, size_bytes = hashlib.sha256(), 0
    making = target.with_name(f"{target.name}.making")
    making.parent.mkdir(parents=True, exist_ok=True)
    try:
        with making.open("wb") as file:
            for block in chain([header], _blocks(place, names)):
                file.write(block)
                hashed.update(block)
                size_bytes += len(block)
        making.replace(target)
    finally:
        making.unlink(missing_ok=True)
    return Packed(path=target, digest=Digest(f"sha256:{hashed.hexdigest()}"), size_bytes=size_bytes, line=line)


def unpack(file: Path, spec: bytes, place: Path) -> Committed:
    """Lay a packed unit out in a new folder; what its line says.

    Raises InvalidError, and leaves no folder, unless it holds only whole files that a unit of this kind commits, with
    a line of this very unit and release.
    """
    packed = TensorFile.open(file, _HEADER_BYTES_MAX)
    key, allowed = unit_key_of(spec), {*output_names(spec), COMMITTED_FILE}
    if packed.metadata != {"format": PACKED_FORMAT, "unit": key} or len(packed.tensors) > _FILES_MAX:
        raise InvalidError(f"{file.name}: not a checkpoint of unit {key[:12]}")
    for info in packed.tensors.values():
        if info.name not in allowed and not PART_NAME.fullmatch(info.name):
            raise InvalidError(f"{file.name}: a unit of this kind commits no {info.name[:80]!r}")
        if info.dtype != "U8" or len(info.shape) != 1:
            raise InvalidError(f"{file.name}: {info.name}: expected bytes")
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
        for name in packed.tensors:
            (place / name).write_bytes(packed.raw(name))
        line = read_committed(place, key)
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    if line is None:
        shutil.rmtree(place, ignore_errors=True)
        raise InvalidError(f"{file.name}: its line is not one of this unit and this release")
    return line


def _contents(place: Path, spec: bytes) -> tuple[list[str], Committed]:
    """The names of what is to be packed, the line first."""
    key = unit_key_of(spec)
    line = read_committed(place, key)
    if line is None or not line.states:
        raise InvalidError(f"nothing of unit {key[:12]} is committed here")
    names = [COMMITTED_FILE, *line.states, *_beside(place, spec, line)]
    for name in names:
        if (place / name).is_symlink() or not (place / name).is_file():
            raise InvalidError(f"of unit {key[:12]}, {name} is no file any more")
    return names, line


def _beside(place: Path, spec: bytes, line: Committed) -> list[str]:
    """What a kind reads without having named it in its line: a training's trace, that says the way to its states."""
    if not isinstance(parse_spec(spec), TrainSpec):
        return []
    from memgrid.kinds.trace import TRACE_FILE

    return [TRACE_FILE] if (place / TRACE_FILE).exists() and TRACE_FILE not in line.states else []


def _header(unit: str, sizes: Sequence[tuple[str, int]]) -> bytes:
    """Source: the safetensors format, github.com/huggingface/safetensors, "Format"."""
    entries: dict[str, object] = {"__metadata__": {"format": PACKED_FORMAT, "unit": unit}}
    position = 0
    for name, size_bytes in sizes:
        place = [position, position + size_bytes]
        entries[name] = {"dtype": "U8", "shape": [size_bytes], "data_offsets": place}
        position += size_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def _blocks(place: Path, names: Sequence[str]) -> Iterator[bytes]:
    for name in names:
        with (place / name).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
