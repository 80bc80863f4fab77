"""Files of tensors that no honest host makes, each out of an honest one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from memgrid.units import ReasonCode

Header = dict[str, Any]
Spoil = Callable[[bytes], bytes]


def _header_of(content: bytes) -> tuple[Header, bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def edited(change: Callable[[Header], object]) -> Spoil:
    """Another header over the same data."""

    def spoil(content: bytes) -> bytes:
        header, data = _header_of(content)
        change(header)
        return _with_header(json.dumps(header).encode(), data)

    return spoil


def renamed(name: str) -> Spoil:
    return edited(lambda header: header.update({name: header.pop("l0.k")}))


def with_shape(shape: list[int]) -> Spoil:
    return edited(lambda header: header["l0.k"].update(shape=shape))


def with_dtype(dtype: Any) -> Spoil:
    return edited(lambda header: header["l0.k"].update(dtype=dtype))


def with_numbers(value: float) -> Spoil:
    """The same file with one number of l1.v replaced; it is stored in bfloat16."""

    def spoil(content: bytes) -> bytes:
        header, data = _header_of(content)
        start = header["l1.v"]["data_offsets"][0]
        bits = (np.array([value], dtype=np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        return _with_header(json.dumps(header).encode(), data[:start] + bits + data[start + 2 :])

    return spoil


def long_header(content: bytes) -> bytes:
    return struct.pack("<Q", 1 << 60) + content[8:]


def deep_header(content: bytes) -> bytes:
    return _with_header(b"[" * 100_000, b"")


def empty_with_a_past(header: Header) -> None:
    """A tensor more that takes no bytes, and says that it has sizes which no computer can count."""
    header["zero"] = {"dtype": "F32", "shape": [0, 1 << 60, 1 << 60], "data_offsets": [0, 0]}


def tokens_of_another(content: bytes) -> bytes:
    header, data = _header_of(content)
    start = header["tokens"]["data_offsets"][0]
    return _with_header(json.dumps(header).encode(), data[:start] + b"\x01\0\0\0" + data[start + 4 :])


TENSOR_BOMBS: dict[str, tuple[Spoil, ReasonCode]] = {
    "a header of 2**60 bytes": (long_header, ReasonCode.WRONG_SHAPE),
    "2**60 elements": (with_shape([1 << 60]), ReasonCode.WRONG_SHAPE),
    "2**60 elements in three dimensions": (with_shape([1 << 20] * 3), ReasonCode.WRONG_SHAPE),
    "no elements, and 2**120 of them": (edited(empty_with_a_past), ReasonCode.WRONG_SHAPE),
    "a header nested 100,000 deep": (deep_header, ReasonCode.WRONG_SHAPE),
}
LIES: dict[str, tuple[Spoil, ReasonCode]] = {
    "a dtype of the same size": (with_dtype("F16"), ReasonCode.WRONG_SHAPE),
    "a dtype that is none": (with_dtype([]), ReasonCode.WRONG_SHAPE),
    "a shape of the same size": (
        edited(lambda header: header["l0.k"]["shape"].reverse()),
        ReasonCode.WRONG_SHAPE,
    ),
    "a name that is no text": (renamed("\ud800"), ReasonCode.WRONG_SHAPE),
    "a name with NUL": (renamed("l0.k\0"), ReasonCode.WRONG_SHAPE),
    "a name that leads elsewhere": (renamed("../l0.k"), ReasonCode.WRONG_SHAPE),
    "another's tokens": (tokens_of_another, ReasonCode.WRONG_OUTPUTS),
}
NUMBERS: dict[str, tuple[Spoil, ReasonCode]] = {
    "NaN": (with_numbers(float("nan")), ReasonCode.NOT_FINITE),
    "infinity": (with_numbers(float("inf")), ReasonCode.NOT_FINITE),
    "minus infinity": (with_numbers(float("-inf")), ReasonCode.NOT_FINITE),
    "a number too large to be squared": (with_numbers(3.3e38), ReasonCode.NOT_FINITE),
    "a denormal": (with_numbers(1e-40), ReasonCode.SKETCH_MISMATCH),
}


def _odd(value: float, column: int) -> Spoil:
    """A sketch with one number of its first row of K replaced: the norm, or a projection."""

    def spoil(content: bytes) -> bytes:
        start = _header_of(content)[0]["k"]["data_offsets"][0]
        at = len(content) - len(_header_of(content)[1]) + start + 4 * column
        return content[:at] + struct.pack("<f", value) + content[at + 4 :]

    return spoil


def _edited_k(**changed: Any) -> Spoil:
    return edited(lambda header: header["k"].update(changed))


BAD = ReasonCode.BAD_SKETCH
SKETCHES: dict[str, tuple[Spoil, ReasonCode]] = {
    "NaN": (_odd(float("nan"), 3), ReasonCode.NOT_FINITE),
    "infinity": (_odd(float("inf"), 0), ReasonCode.NOT_FINITE),
    "a negative norm": (_odd(-1.0, 0), BAD),
    "2**60 elements": (_edited_k(shape=[1 << 60]), BAD),
    "another dtype": (_edited_k(dtype="I32"), BAD),
    "a dtype that is none": (_edited_k(dtype=[]), BAD),
    "a name that is no text": (edited(lambda header: header.update({"\ud800": header.pop("k")})), BAD),
    "a name with NUL": (edited(lambda header: header.update({"\0": header.pop("k")})), BAD),
    "no elements, and 2**120 of them": (edited(empty_with_a_past), BAD),
    "a header of 2**60 bytes": (long_header, BAD),
    "a header nested deep": (lambda content: _with_header(b"[" * 2000, b""), BAD),
    "no file at all": (lambda content: b"", BAD),
    "far too large": (lambda content: bytes(1 << 19), BAD),
}
