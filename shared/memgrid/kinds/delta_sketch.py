"""A few kilobytes that stand for how training moved an adapter, so that two results compare without meeting.

Each part of the adapter (K or V of a layer, a matrix of LoRA) leaves the norm of its change and six projections on
random signs: the difference of two sketches estimates how far apart the changes are, without bias, with a spread of
at most 29 % for a part (`memgrid.kinds.sketch` says why). 28 bytes a part are at most a two-hundredth of parameters
alone from rank 4 and from 8 virtual tokens on in models as narrow as SmolLM2-135M, and a third of that beside Adam's
moments, which are handed in too.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.state_file import groups, parameters_of
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import AdapterSpec
from memgrid.units import ReasonCode, UnitKey

PROJECTIONS = 6
_COLUMNS = 1 + PROJECTIONS
_HEADER_BYTES_MAX = 4096
_PIECE_NUMBERS = 4096
_RECOMPUTED_TOLERANCE = 5e-5
"""Of a part's norm: sums of the same numbers in another order, in single precision within a piece of them."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaSketch:
    """float32 [parts, 7]: the norm of each part's change, then its six projections."""

    parts: Array


def sketch_states(
    start: Path, end: Path, adapter: AdapterSpec, geometry: ModelGeometry, unit_key: UnitKey
) -> DeltaSketch:
    """Of the change from one state file to another."""
    before, after = (groups(parameters_of(TensorFile.open(path)), adapter, geometry) for path in (start, end))
    rows = np.empty((len(after), _COLUMNS), dtype=np.float64)
    signs: dict[int, Array] = {}
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if len(new) not in signs:
            signs[len(new)] = _signs(unit_key, len(new))
        rows[number] = _sketch_part(new - old, signs[len(new)])
    return DeltaSketch(parts=rows.astype(np.float32))


def _sketch_part(change: Array, signs: Array) -> npt.NDArray[np.float64]:
    """[n] -> [7]: products in single precision of a few thousand numbers each, added up in double."""
    row = np.zeros(_COLUMNS)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(change), _PIECE_NUMBERS):
            piece = change[first : first + _PIECE_NUMBERS]
            row[0] += piece @ piece
            row[1:] += piece @ signs[first : first + _PIECE_NUMBERS]
        row[0] = math.sqrt(row[0])
    return row


def delta_sketch_bytes(sketch: DeltaSketch) -> bytes:
    """The file a report brings."""
    content: bytes = save({"delta": np.ascontiguousarray(sketch.parts)})
    return content


def parse_delta_sketch(content: bytes, parts: int) -> DeltaSketch:
    """A sketch from a stranger; raises RefusedError (BAD_SKETCH, NOT_FINITE) unless it has so many parts."""
    if len(content) > 4 * parts * _COLUMNS + _HEADER_BYTES_MAX:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"sketch: {len(content)} bytes are too many for {parts} parts")
    try:
        file = TensorFile.of_bytes(content, "sketch", _HEADER_BYTES_MAX)
    except InvalidError as error:
        raise RefusedError(ReasonCode.BAD_SKETCH, str(error)) from None
    found = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
    if found != {"delta": ("F32", (parts, _COLUMNS))}:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"sketch: expected delta F32 [{parts}, {_COLUMNS}]")
    rows = file.float32("delta")
    if not np.isfinite(rows).all():
        raise RefusedError(ReasonCode.NOT_FINITE, "sketch: contains NaN or infinity")
    if bool((rows[:, 0] < 0).any()):
        raise RefusedError(ReasonCode.BAD_SKETCH, "sketch: contains a negative norm")
    return DeltaSketch(parts=rows)


def differences(one: DeltaSketch, other: DeltaSketch) -> dict[str, float]:
    """How far two changes lie apart: relative L2 of all, of the worst part, and how their lengths differ.

    >>> rows = np.float32([[2.0, 2, -2, 2, 2, -2, 2]])
    >>> differences(DeltaSketch(parts=rows), DeltaSketch(parts=2 * rows))
    {'relative L2': 0.5, 'worst part': 0.5, 'norm ratio': 0.5}
    """
    first, second = one.parts.astype(np.float64), other.parts.astype(np.float64)
    apart = ((first[:, 1:] - second[:, 1:]) ** 2).mean(axis=1)  # estimates of the squared distance of each part
    norms = np.maximum(first[:, 0], second[:, 0])
    lengths = [math.sqrt(float((rows[:, 0] ** 2).sum())) for rows in (first, second)]
    longer = max(*lengths, 1e-300)
    return {
        "relative L2": math.sqrt(float(apart.sum())) / max(math.sqrt(float((norms**2).sum())), 1e-300),
        "worst part": float((np.sqrt(apart) / np.maximum(norms, 1e-300)).max()),
        "norm ratio": abs(lengths[0] - lengths[1]) / longer,
    }


def is_recomputed(reported: DeltaSketch, made: DeltaSketch) -> bool:
    """Whether two sketches are of one change, up to the order of sums."""
    scale = np.maximum(np.abs(made.parts[:, :1]), 1e-30)
    return bool((np.abs(reported.parts - made.parts) <= _RECOMPUTED_TOLERANCE * scale).all())


def _signs(unit_key: UnitKey, length: int) -> Array:
    """[length, 6] of +1 and -1, the same for every part of that length."""
    count = length * PROJECTIONS
    stream = hashlib.shake_256(f"{unit_key}delta".encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count)
    return (1 - 2 * bits.astype(np.float32)).reshape(length, PROJECTIONS)
