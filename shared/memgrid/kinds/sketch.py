"""A few kilobytes that stand for every number of a KV cache, so that two caches compare without meeting.

Per layer and per block of 16 tokens, K and V each leave their norm and six projections on random signs
(Johnson-Lindenstrauss): the difference of two sketches estimates the relative L2 distance of the caches.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.errors import InvalidError
from memgrid.kinds.built_in_rows import SKETCH_STATISTICS
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.units import ReasonCode, UnitKey

BLOCK_TOKENS = 16
PROJECTIONS = 6
_COLUMNS = 1 + PROJECTIONS
_HEADER_BYTES_MAX = 4096
_RECOMPUTED_TOLERANCE = 1e-5
"""Sums of the same numbers in another order: float64 throughout, so only the last float32 bit may differ."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """`k` and `v` are float32 [layers, blocks, 7]: the norm of the block, then its six projections."""

    k: Array
    v: Array


def sketch_bytes(layers: int, tokens: int) -> int:
    """The size of a sketch without its header, for limits and plans.

    >>> sketch_bytes(layers=30, tokens=256)
    26880
    """
    return 2 * layers * -(-tokens // BLOCK_TOKENS) * _COLUMNS * 4


def sketch_file(path: Path, unit_key: UnitKey) -> bytes:
    """Sketch a `kv.safetensors` as stored; safetensors bytes with float32 `k` and `v` [layers, blocks, 7].

    The numbers after rounding to the store dtype count, so whoever holds the file can repeat the sketch.
    """
    file = TensorFile.open(path)
    layers = sum(1 for name in file.tensors if name.endswith(".k"))
    if layers == 0:
        raise InvalidError(f"{path.name}: no tensor l0.k: this is no KV cache")
    tensors = {}
    for half in ("k", "v"):
        rows = [_sketch_layer(file.float32(f"l{layer}.{half}"), unit_key, half) for layer in range(layers)]
        tensors[half] = np.stack(rows)
    content: bytes = save(tensors)
    return content


def _sketch_layer(values: Array, unit_key: UnitKey, half: str) -> Array:
    """[heads, tokens, dim] -> [blocks, 7]; the last block is filled up with zeros."""
    heads, tokens, dim = values.shape
    blocks = -(-tokens // BLOCK_TOKENS)
    padded = np.zeros((blocks * BLOCK_TOKENS, heads, dim), dtype=np.float64)
    padded[:tokens] = values.transpose(1, 0, 2)
    rows = padded.reshape(blocks, BLOCK_TOKENS * heads * dim)
    result = np.empty((blocks, _COLUMNS), dtype=np.float64)
    result[:, 0] = np.sqrt(np.einsum("bn,bn->b", rows, rows))
    result[:, 1:] = rows @ _signs(unit_key, half, rows.shape[1])
    return result.astype(np.float32)


def _signs(unit_key: UnitKey, half: str, length: int) -> npt.NDArray[np.float64]:
    """[length, 6] of +1 and -1, the same for every block and layer of a unit."""
    count = length * PROJECTIONS
    stream = hashlib.shake_256(f"{unit_key}{half}".encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count)
    return (1.0 - 2.0 * bits.astype(np.float64)).reshape(length, PROJECTIONS)


def parse_sketch(content: bytes, layers: int, tokens: int) -> Sketch:
    """A sketch from a stranger; raises RefusedError (BAD_SKETCH, NOT_FINITE) unless it has the unit's shape."""
    shape = (layers, -(-tokens // BLOCK_TOKENS), _COLUMNS)
    sketch = _as_we_write_it(content, shape) or _read_strictly(content, shape, sketch_bytes(layers, tokens))
    if not (np.isfinite(sketch.k).all() and np.isfinite(sketch.v).all()):
        raise RefusedError(ReasonCode.NOT_FINITE, "sketch: contains NaN or infinity")
    if bool((sketch.k[..., 0] < 0).any() or (sketch.v[..., 0] < 0).any()):
        raise RefusedError(ReasonCode.BAD_SKETCH, "sketch: contains a negative norm")
    return sketch


def _as_we_write_it(content: bytes, shape: tuple[int, int, int]) -> Sketch | None:
    """A sketch whose header is, to the byte, the one `sketch_file` writes: reports are read by the thousand."""
    header = _usual_header(shape)
    if not content.startswith(header) or len(content) != len(header) + 8 * math.prod(shape):
        return None
    k, v = np.frombuffer(content, dtype="<f4", offset=len(header)).reshape(2, *shape)
    return Sketch(k=k, v=v)


@lru_cache(256)
def _usual_header(shape: tuple[int, int, int]) -> bytes:
    empty = np.zeros(shape, dtype=np.float32)
    return bytes(save({"k": empty, "v": empty})[: -8 * math.prod(shape)])


def _read_strictly(content: bytes, shape: tuple[int, int, int], data_bytes: int) -> Sketch:
    """Any other safetensors file with the same tensors, or the reason why it is none."""
    if len(content) > data_bytes + _HEADER_BYTES_MAX:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"sketch of {len(content)} bytes is larger than its unit's can be")
    try:
        file = TensorFile.of_bytes(content, "sketch", _HEADER_BYTES_MAX)
    except InvalidError as error:
        raise RefusedError(ReasonCode.BAD_SKETCH, str(error)) from None
    if set(file.tensors) != {"k", "v"}:
        raise RefusedError(ReasonCode.BAD_SKETCH, "sketch: expected the tensors k and v")
    for info in file.tensors.values():
        if info.dtype != "F32" or info.shape != shape:
            found = f"{info.dtype} {list(info.shape)}"[:80]
            raise RefusedError(
                ReasonCode.BAD_SKETCH, f"sketch: {info.name}: expected F32 {list(shape)}, found {found}"
            )
    return Sketch(k=file.float32("k"), v=file.float32("v"))


def is_recomputed(reported: Sketch, recomputed: Sketch) -> bool:
    """Whether a reported sketch is the one of the file at hand, up to the order in which sums were taken."""
    return all(
        a.shape == b.shape and bool((np.abs(a - b) <= _RECOMPUTED_TOLERANCE * b[..., :1]).all())
        for a, b in ((reported.k, recomputed.k), (reported.v, recomputed.v))
    )


def distances(a: Sketch, b: Sketch) -> dict[str, float]:
    """Relative L2 distances estimated from two sketches of the same unit; 0 only when the sketches are equal.

    Of K and of V apart, each in four ways: the median layer, the worst, layer 0, and the worst block. With n blocks
    a layer's estimate scatters by about 1/sqrt(12 n) of its value, a single block's by 30 %.
    """
    found: dict[str, float] = {}
    layers, blocks = {}, {}
    layers["K"], blocks["K"] = _relative(a.k.astype(np.float64), b.k.astype(np.float64))
    layers["V"], blocks["V"] = _relative(a.v.astype(np.float64), b.v.astype(np.float64))
    for half in "KV":
        found |= {
            f"{half} median": float(np.median(layers[half])),
            f"{half} worst layer": float(layers[half].max()),
            f"{half} layer 0": float(layers[half][0]),
            f"{half} worst block": float(blocks[half].max()),
        }
    return {name: found[name] for name in SKETCH_STATISTICS}


def _relative(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """[layers, blocks, 7] twice -> relative distances of layers [layers] and of blocks [layers, blocks]."""
    square = ((a[..., 1:] - b[..., 1:]) ** 2).mean(axis=-1)
    # Norms that differ by x are at least x apart, whatever the projections say.
    square = np.maximum(square, (a[..., 0] - b[..., 0]) ** 2)
    scale = (a[..., 0] ** 2 + b[..., 0] ** 2) / 2
    return _root_ratio(square.sum(axis=-1), scale.sum(axis=-1)), _root_ratio(square, scale)


def _root_ratio(square: npt.NDArray[Any], scale: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Where both norms are zero the projections must be too; a sketch that says otherwise is infinitely far.
    with np.errstate(divide="ignore"):
        ratio = np.divide(square, scale, out=np.where(square > 0, np.inf, 0.0), where=scale > 0)
    root: npt.NDArray[Any] = np.sqrt(ratio)
    return root
