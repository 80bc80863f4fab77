"""A few kilobytes that stand for every number of a KV cache, so that two caches compare without meeting.

Per layer and per block of tokens, K and V each leave their norm and six projections on random signs. For the
difference d of two caches, the difference p of a projection has E[p^2] = |d|^2, and p^2 a variance of at most
2 |d|^4 (Alon, Matias and Szegedy, STOC 1996): the mean of six squares has no bias and a spread of at most 58 % of
|d|^2, which is 29 % of |d|. More sharply, it is below (1 - e) |d|^2, or above (1 + e) |d|^2, with a probability of at
most exp(-3 (e^2/2 - e^3/3)) each (Achlioptas, JCSS 2003, on Johnson and Lindenstrauss). A layer adds up n blocks:
where they lie equally far apart, the spread is 29 % / sqrt(n) of |d|, and never more than a block's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.errors import InvalidError
from memgrid.kinds.built_in_rows import SKETCH_STATISTICS
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.units import ReasonCode, StoreDtype, UnitKey

SKETCH_FORMAT = "memgrid.sketch.v2"
PROJECTIONS = 6
_COLUMNS = 1 + PROJECTIONS
_BLOCK_TOKENS_MIN = 16
_SHARE_MAX = 200
"""A sketch takes at most one byte for so many of the cache, wherever a block a layer does not already take more."""
_OWN_HEADER_BYTES = 256
_HEADER_BYTES_MAX = 4096
_RECOMPUTED_TOLERANCE = 5e-5
"""Of a block's norm. Sums of the same numbers in another order: within a head in single precision, which errs by a
few millionths with any library and processor (`tests/unit/test_sketch.py`), over heads in double.
"""
_PIECE_NUMBERS = 1 << 17
"""Turned into single precision at once: what stays in a processor's second cache is five times as fast."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchForm:
    """How a cache is cut: by its sizes alone, so that everybody cuts it alike."""

    layers: int
    tokens: int
    block_tokens: int

    @property
    def blocks(self) -> int:
        return -(-self.tokens // self.block_tokens)

    @property
    def data_bytes(self) -> int:
        """The size of a sketch without its header, for limits and plans."""
        return 2 * self.layers * self.blocks * _COLUMNS * 4


def sketch_form(geometry: ModelGeometry, store_dtype: StoreDtype, tokens: int) -> SketchForm:
    """Blocks of 16 tokens, or as many more as it takes for the sketch to be at most 1/200 of the cache.

    >>> smol = ModelGeometry(layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152,
    ...     parameters=134515008, tied_embeddings=True)
    >>> form = sketch_form(smol, StoreDtype.BFLOAT16, 256)
    >>> form.block_tokens, form.blocks, form.data_bytes / smol.kv_bytes(256, StoreDtype.BFLOAT16)
    (16, 16, 0.004557291666666667)
    """
    return _form(geometry.layers, geometry.kv_bytes(tokens, store_dtype), tokens)


def _form(layers: int, cache_bytes: int, tokens: int) -> SketchForm:
    a_block = 2 * layers * _COLUMNS * 4
    affordable = (cache_bytes // _SHARE_MAX - _OWN_HEADER_BYTES) // a_block
    blocks = max(1, min(affordable, tokens // _BLOCK_TOKENS_MIN))
    return SketchForm(layers=layers, tokens=tokens, block_tokens=-(-tokens // blocks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """`k` and `v` are float32 [layers, blocks, 7]: the norm of the block, then its six projections."""

    k: Array
    v: Array


def sketch_file(path: Path, unit_key: UnitKey) -> bytes:
    """Sketch a `kv.safetensors` as stored; safetensors bytes with float32 `k` and `v` [layers, blocks, 7].

    The numbers after rounding to the store dtype count, so whoever holds the file can repeat the sketch. The file is
    read once, a piece of a head at a time.
    """
    file = TensorFile.open(path)
    layers = sum(1 for name in file.tensors if name.endswith(".k"))
    if layers == 0:
        raise InvalidError(f"{path.name}: no tensor l0.k: this is no KV cache")
    heads, tokens, dim = file.tensors["l0.k"].shape
    cache_bytes = sum(info.end - info.start for name, info in file.tensors.items() if name != "tokens")
    form = _form(layers, cache_bytes, tokens)
    found = {}
    for half in ("k", "v"):
        signs = _signs(unit_key, half, heads, form.block_tokens * dim)
        rows = [_sketch_layer(file.bits(f"l{layer}.{half}"), signs, form) for layer in range(layers)]
        found[half] = np.stack(rows)
    return sketch_content(Sketch(k=found["k"], v=found["v"]))


def sketch_content(sketch: Sketch) -> bytes:
    """The file a report brings."""
    content: bytes = save({"k": sketch.k, "v": sketch.v}, metadata={"format": SKETCH_FORMAT})
    return content


def _sketch_layer(stored: npt.NDArray[Any], signs: Array, form: SketchForm) -> Array:
    """[heads, tokens, dim] as stored -> [blocks, 7]."""
    sums = np.zeros((form.blocks, _COLUMNS))
    # Numbers that no model makes may overflow; the sketch is then not finite, which is a reason to refuse it.
    with np.errstate(over="ignore", invalid="ignore"):
        for head, of_head in enumerate(stored):
            for first, rows in _pieces(of_head, form.block_tokens):
                part = sums[first : first + len(rows)]
                part[:, 0] += np.einsum("bn,bn->b", rows, rows)
                part[:, 1:] += rows @ signs[head, : rows.shape[1]]
        sums[:, 0] = np.sqrt(sums[:, 0])
        return sums.astype(np.float32)


def _pieces(of_head: npt.NDArray[Any], block_tokens: int) -> Iterator[tuple[int, Array]]:
    """[tokens, dim] -> the number of a block, whole blocks from it on [some, block_tokens * dim]; last the rest."""
    tokens, dim = of_head.shape
    whole = tokens // block_tokens
    at_once = max(1, _PIECE_NUMBERS // (block_tokens * dim))
    for first in range(0, whole, at_once):
        last = min(whole, first + at_once)
        yield first, _floats(of_head[first * block_tokens : last * block_tokens]).reshape(last - first, -1)
    if tokens % block_tokens:
        yield whole, _floats(of_head[whole * block_tokens :]).reshape(1, -1)


def _floats(stored: npt.NDArray[Any]) -> Array:
    """Finite numbers as float32, exactly; bfloat16 is stored as uint16 bits."""
    if stored.dtype == np.uint16:
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if stored.dtype == np.float16:
        # As numpy does it, three times as fast: sign, exponent and fraction go to their places, 2^-112 as large.
        moved = stored.view(np.int16).astype(np.int32)
        moved <<= 13
        moved &= -0x70000001
        floats = moved.view(np.float32)
        floats *= np.float32(2.0**112)
        return floats
    return stored.astype(np.float32, copy=False)


def _signs(unit_key: UnitKey, half: str, heads: int, length: int) -> Array:
    """[heads, length, 6] of +1 and -1, the same for every block and layer of a unit."""
    count = heads * length * PROJECTIONS
    stream = hashlib.shake_256(f"{unit_key}{half}".encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count)
    return (1 - 2 * bits.astype(np.float32)).reshape(heads, length, PROJECTIONS)


def parse_sketch(content: bytes, form: SketchForm) -> Sketch:
    """A sketch from a stranger; raises RefusedError (BAD_SKETCH, NOT_FINITE) unless it has the unit's form."""
    shape = (form.layers, form.blocks, _COLUMNS)
    sketch = _as_we_write_it(content, shape) or _read_strictly(content, shape, form.data_bytes)
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
    return sketch_content(Sketch(k=empty, v=empty))[: -8 * math.prod(shape)]


def _read_strictly(content: bytes, shape: tuple[int, int, int], data_bytes: int) -> Sketch:
    """Any other safetensors file with the same tensors, or the reason why it is none."""
    if len(content) > data_bytes + _HEADER_BYTES_MAX:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"sketch of {len(content)} bytes is larger than its unit's can be")
    try:
        file = TensorFile.of_bytes(content, "sketch", _HEADER_BYTES_MAX)
    except InvalidError as error:
        raise RefusedError(ReasonCode.BAD_SKETCH, str(error)) from None
    found_format = file.metadata.get("format", "none")
    if found_format != SKETCH_FORMAT:
        text = f"sketch: expected format {SKETCH_FORMAT}, found {found_format[:40]}: made by another release"
        raise RefusedError(ReasonCode.BAD_SKETCH, text)
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


def first_difference(a: Sketch, b: Sketch, limits: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """The first block in which two caches differ beyond limits, and its earliest layer; None when they are equal.

    `limits` are those of K and of V, each of layer 0 (a block's estimate alone scatters: four times as much is taken)
    and of a block of any layer. Where no block goes beyond, the one that is furthest off.
    """
    shares = []
    for one, other, (first_layer, any_layer) in zip((a.k, a.v), (b.k, b.v), limits, strict=True):
        _, blocks = _relative(one.astype(np.float64), other.astype(np.float64))
        allowed = np.full((len(blocks), 1), any_layer)
        allowed[0] = min(any_layer, 4 * first_layer)
        shares.append(blocks / allowed)
    share = np.maximum(*shares)  # [layers, blocks]
    beyond = share > 1
    if beyond.any():
        block = int(beyond.any(axis=0).argmax())
        return block, int(beyond[:, block].argmax())
    if not share.any():
        return None
    layer, block = np.unravel_index(share.argmax(), share.shape)
    return int(block), int(layer)


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
