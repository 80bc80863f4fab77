"""Read safetensors files from strangers: strictly, lazily, without torch.

The safetensors library checks offsets too, but numpy knows no bfloat16, and the library hands out
arrays before anyone could ask for their size; here every size is known before a byte of data is touched.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgrid.errors import InvalidError

HEADER_BYTES_MAX = 16 << 20
"""More than any real model needs; the library itself allows 100 MB."""
_PREFIX_BYTES = 8
_DIMENSIONS_MAX = 8
_ELEMENTS_MAX = 1 << 48
"""Far more than fits anywhere; a tensor of no elements could else claim sizes that numpy can't count."""
_BITS: dict[str, npt.DTypeLike] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies; `start` and `end` count from the beginning of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """A safetensors file (or bytes) whose header held every check; data is mapped, not read.

    >>> from safetensors.numpy import save
    >>> file = TensorFile.of_bytes(save({"x": np.ones(3, dtype="<f4")}))
    >>> file.tensors["x"].shape, float(file.float32("x").sum())
    ((3,), 3.0)
    """

    def __init__(self, content: memoryview, what: str, header_bytes_max: int = HEADER_BYTES_MAX) -> None:
        self._what = what
        header_bytes = _header_length(content, what, header_bytes_max)
        data_start = _PREFIX_BYTES + header_bytes
        self.metadata, self.tensors = _parse_header(
            bytes(content[_PREFIX_BYTES:data_start]), len(content) - data_start, what
        )
        self._data = content[data_start:]

    @staticmethod
    def open(path: Path, header_bytes_max: int = HEADER_BYTES_MAX) -> TensorFile:
        """Map a file; raises InvalidError when it is no well-formed safetensors file."""
        with path.open("rb") as file:
            if path.stat().st_size < _PREFIX_BYTES:
                raise InvalidError(f"{path.name}: too short for a safetensors file")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return TensorFile(memoryview(mapped), path.name, header_bytes_max)

    @staticmethod
    def of_bytes(content: bytes, what: str = "safetensors", header_bytes_max: int = HEADER_BYTES_MAX) -> TensorFile:
        return TensorFile(memoryview(content), what, header_bytes_max)

    def raw(self, name: str) -> memoryview:
        """The bytes of a tensor as stored."""
        info = self.tensors[name]
        return self._data[info.start : info.end]

    def bits(self, name: str) -> npt.NDArray[Any]:
        """A tensor without a copy; bfloat16 and float8 come as the unsigned integers of their bits."""
        info = self.tensors[name]
        return np.frombuffer(self.raw(name), dtype=_BITS[info.dtype]).reshape(info.shape)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """A floating-point tensor as float32, exact for bfloat16 and float16."""
        info, bits = self.tensors[name], self.bits(name)
        if info.dtype == "BF16":
            return (bits.astype("<u4") << 16).view("<f4")
        if info.dtype not in ("F32", "F16"):
            raise InvalidError(f"{self._what}: {name}: expected a floating-point tensor, found {info.dtype}")
        return bits.astype("<f4", copy=False)

    def is_finite(self, name: str) -> bool:
        """Whether no element is NaN or infinite, by the exponent bits alone."""
        info, bits = self.tensors[name], self.bits(name)
        if info.dtype == "BF16":
            return not bool(((bits & 0x7F80) == 0x7F80).any())
        return bool(np.isfinite(bits).all())


def _header_length(content: memoryview, what: str, header_bytes_max: int) -> int:
    if len(content) < _PREFIX_BYTES:
        raise InvalidError(f"{what}: too short for a safetensors file")
    length = int(struct.unpack("<Q", content[:_PREFIX_BYTES])[0])
    if length > header_bytes_max:
        raise InvalidError(f"{what}: header of {length} bytes, at most {header_bytes_max} are allowed")
    if _PREFIX_BYTES + length > len(content):
        raise InvalidError(f"{what}: truncated inside its header")
    return length


def _parse_header(header: bytes, data_bytes: int, what: str) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    try:
        entries = json.loads(header, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what}: header is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise InvalidError(f"{what}: header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise InvalidError(f"{what}: __metadata__: expected text values")
    infos = sorted(_tensor_infos(entries, what), key=lambda info: (info.start, info.end))
    position = 0
    for info in infos:
        if info.start != position:
            raise InvalidError(f"{what}: {info.name}: starts at byte {info.start}, expected {position}")
        position = info.end
    if position != data_bytes:
        raise InvalidError(f"{what}: tensors end at byte {position}, the file's data at {data_bytes}")
    return metadata, {info.name: info for info in infos}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _tensor_infos(entries: dict[str, Any], what: str) -> Iterator[TensorInfo]:
    for name, entry in entries.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise InvalidError(f"{what}: {name}: expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not name.isprintable():
            raise InvalidError(f"{what}: a tensor's name is not plain text: {name[:80]!a}")
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise InvalidError(f"{what}: {name}: unknown dtype {str(dtype)[:20]!r}")
        if not _are_sizes(shape) or len(shape) > _DIMENSIONS_MAX or _extent(shape) > _ELEMENTS_MAX:
            raise InvalidError(f"{what}: {name}: bad shape")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise InvalidError(f"{what}: {name}: bad data_offsets")
        # Python integers do not overflow: a header that claims 2**60 elements fails to match its offsets.
        if math.prod(shape) * np.dtype(_BITS[dtype]).itemsize != offsets[1] - offsets[0]:
            raise InvalidError(f"{what}: {name}: shape and dtype do not match the bytes given")
        yield TensorInfo(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _extent(shape: list[int]) -> int:
    """The elements of a shape, its empty dimensions left out."""
    return math.prod(size or 1 for size in shape)
