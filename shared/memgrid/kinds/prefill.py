"""What a prefill unit hands in: the KV cache of its tokens, what it costs, and whether a file is one at all.

`kv.safetensors` holds `tokens` I32 [n] and, for every layer i, `l{i}.k` and `l{i}.v` [kv_heads, n, head_dim] in
the store dtype, keys rotated to their positions. It is the chunk file of the cube as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memgrid.errors import InvalidError
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import PrefillSpec
from memgrid.units import ReasonCode, StoreDtype

KV_FILE = "kv.safetensors"
KV_FORMAT = "memgrid.kv.v1"
TENSOR_DTYPE = {StoreDtype.FLOAT32: "F32", StoreDtype.FLOAT16: "F16", StoreDtype.BFLOAT16: "BF16"}
_HEADER_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGeometry:
    """The sizes of a model that decide the shape and the cost of its KV cache."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    parameters: int
    """All weights, tied embeddings counted once."""
    tied_embeddings: bool

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all but the embedding table and the output head."""
        tables = 1 if self.tied_embeddings else 2
        return self.parameters - tables * self.vocab * self.hidden

    def kv_bytes(self, token_count: int, store_dtype: StoreDtype) -> int:
        """Bytes of K and V for that many tokens.

        >>> smol = ModelGeometry(layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152,
        ...     parameters=134515008, tied_embeddings=True)
        >>> smol.kv_bytes(1, StoreDtype.BFLOAT16)
        23040
        """
        item_bytes = 4 if store_dtype is StoreDtype.FLOAT32 else 2
        return 2 * self.layers * self.kv_heads * self.head_dim * token_count * item_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFile:
    """A KV cache as stored: bfloat16 comes as uint16 bits, other dtypes as themselves; nothing is copied."""

    tokens: npt.NDArray[np.int32]
    k: tuple[npt.NDArray[Any], ...]
    v: tuple[npt.NDArray[Any], ...]
    dtype: StoreDtype


def flops(geometry: ModelGeometry, token_count: int, start: int) -> int:
    """Floating-point operations of a forward pass over `token_count` tokens that follow `start` cached ones.

    Two for each weight and token; for attention four per head dimension and pair of a token with one it sees.
    The output head is left out: a cache needs no logits.

    >>> smol = ModelGeometry(layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152,
    ...     parameters=134515008, tied_embeddings=True)
    >>> f"{flops(smol, 2048, 0):.2e}"
    '5.80e+11'
    """
    pairs = token_count * start + token_count * (token_count + 1) // 2
    dense = 2 * geometry.matmul_parameters * token_count
    return dense + 4 * geometry.layers * geometry.heads * geometry.head_dim * pairs


def past_file(index: int) -> str:
    """The name, in the folder of a unit that continues others, of the cache of the chunk with that number.

    >>> past_file(3)
    'past/0003.safetensors'
    """
    return f"past/{index:04d}.safetensors"


def check_kv_file(path: Path, spec: PrefillSpec, token_ids: Sequence[int], geometry: ModelGeometry) -> None:
    """Whether a file is the KV cache that `spec` asks for, by its form; raises RefusedError with the reason.

    WRONG_SHAPE for anything about format, dtype, shape or names, WRONG_OUTPUTS for other tokens, NOT_FINITE
    for NaN or infinity. Whether the numbers are right is for the sketches to say.
    """
    file = check_kv_form(path, spec, token_ids, geometry)
    for name in file.tensors:
        if name != "tokens" and not file.is_finite(name):
            raise RefusedError(ReasonCode.NOT_FINITE, f"{path.name}: {name} contains NaN or infinity")


def check_kv_form(path: Path, spec: PrefillSpec, token_ids: Sequence[int], geometry: ModelGeometry) -> TensorFile:
    """All of `check_kv_file` that needs no look at the numbers of the cache."""
    expected = _expected_tensors(spec, geometry)
    size_bytes = path.stat().st_size
    largest = geometry.kv_bytes(spec.token_count, spec.store_dtype) + 4 * spec.token_count + _HEADER_BYTES_MAX
    if size_bytes > largest:
        raise RefusedError(
            ReasonCode.UPLOAD_TOO_LARGE, f"{path.name}: {size_bytes} bytes, at most {largest} expected"
        )
    try:
        file = TensorFile.open(path, _HEADER_BYTES_MAX)
    except InvalidError as error:
        raise RefusedError(ReasonCode.WRONG_SHAPE, str(error)) from None
    if file.metadata != {"format": KV_FORMAT}:
        raise RefusedError(ReasonCode.WRONG_SHAPE, f"{path.name}: metadata: expected only format={KV_FORMAT}")
    _check_shapes(file, expected, path.name)
    if file.bits("tokens").tolist() != list(token_ids):
        raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"{path.name}: tokens are not the unit's tokens")
    return file


def read_kv(path: Path) -> KvFile:
    """A KV file without torch; raises InvalidError when it is none."""
    file = TensorFile.open(path, _HEADER_BYTES_MAX)
    layers = (len(file.tensors) - 1) // 2
    wanted = {"tokens"} | {f"l{layer}.{half}" for layer in range(layers) for half in ("k", "v")}
    if file.metadata.get("format") != KV_FORMAT or layers < 1 or set(file.tensors) != wanted:
        raise InvalidError(f"{path.name}: not a {KV_FORMAT} file")
    stored = {word: dtype for dtype, word in TENSOR_DTYPE.items()}.get(file.tensors["l0.k"].dtype)
    if stored is None or len({info.dtype for name, info in file.tensors.items() if name != "tokens"}) != 1:
        raise InvalidError(f"{path.name}: expected K and V in one of {', '.join(StoreDtype)}")
    return KvFile(
        tokens=file.bits("tokens"),
        k=tuple(file.bits(f"l{layer}.k") for layer in range(layers)),
        v=tuple(file.bits(f"l{layer}.v") for layer in range(layers)),
        dtype=stored,
    )


def _expected_tensors(spec: PrefillSpec, geometry: ModelGeometry) -> dict[str, tuple[str, tuple[int, ...]]]:
    dtype = TENSOR_DTYPE[spec.store_dtype]
    shape = (geometry.kv_heads, spec.token_count, geometry.head_dim)
    halves = {f"l{layer}.{half}": (dtype, shape) for layer in range(geometry.layers) for half in ("k", "v")}
    return {"tokens": ("I32", (spec.token_count,)), **halves}


def _check_shapes(file: TensorFile, expected: dict[str, tuple[str, tuple[int, ...]]], what: str) -> None:
    for name in sorted(set(file.tensors) ^ set(expected)):
        fault = "is missing" if name in expected else "is not wanted"
        raise RefusedError(ReasonCode.WRONG_SHAPE, f"{what}: tensor {name[:80]} {fault}")
    for name, (dtype, shape) in expected.items():
        info = file.tensors[name]
        if (info.dtype, info.shape) != (dtype, shape):
            raise RefusedError(
                ReasonCode.WRONG_SHAPE,
                f"{what}: {name}: expected {dtype} {list(shape)}, found {info.dtype} {list(info.shape)}",
            )
