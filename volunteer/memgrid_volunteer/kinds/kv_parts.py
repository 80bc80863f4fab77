"""Parts of a half-filled KV cache on disk, in the dtype they were computed in.

Knows tensors and their form; knows nothing of when a part is written. Whoever reads one believes nothing of it but
what it can see: names, shapes and dtype are this model's, and all numbers are finite. Shapes: g KV heads, t tokens,
d head dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from memgrid.distill.prefill import Filling, Pair
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.errors import InvalidError
from memgrid.kinds.tensorfile import TensorFile
from memgrid_volunteer.kinds.committed import Checkpoint

_FORMAT = "memgrid.kv-part.v1"
_WORD = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def part_bytes(filling: Filling, begin: int) -> bytes:
    """K and V [g, t, d] of each layer, of the new tokens from the one numbered `begin`."""
    tensors = {}
    for layer, (k, v) in enumerate(filling.new(begin)):
        tensors[f"l{layer}.k"], tensors[f"l{layer}.v"] = k.cpu().contiguous(), v.cpu().contiguous()
    content: bytes = save(tensors, metadata={"format": _FORMAT, "begin": str(begin)})
    return content


def size_bytes(filling: Filling, begin: int) -> int:
    """What `part_bytes` would hold."""
    return sum(half.numel() * half.element_size() for pair in filling.new(begin) for half in pair)


def read_parts(checkpoint: Checkpoint, model: Any, dtype: torch.dtype, tokens: int) -> list[Pair]:
    """K and V [g, t, d] of each layer, of the first t of `tokens`, as far as the parts are such as this unit has."""
    parts: list[list[Pair]] = []
    files: list[Path] = []
    begin = 0
    for path in checkpoint.whole():
        pairs = _part(path, model, dtype, range(begin, tokens))
        if pairs is None:
            break
        begin += int(pairs[0][0].shape[1])
        files.append(path)
        parts.append(pairs)
    checkpoint.go_on_from(files)
    return [
        (torch.cat([k for k, _ in layer], dim=1), torch.cat([v for _, v in layer], dim=1))
        for layer in zip(*parts, strict=True)
    ]


def _part(path: Path, model: Any, dtype: torch.dtype, expected: range) -> list[Pair] | None:
    """None unless it holds finite K and V of the first of the expected tokens, in every layer of this model."""
    geometry = geometry_of_model(model)
    try:
        file = TensorFile.open(path)
    except (InvalidError, OSError):
        return None
    first = file.tensors.get("l0.k")
    if file.metadata != {"format": _FORMAT, "begin": str(expected.start)} or first is None or len(first.shape) != 3:
        return None
    if not 0 < first.shape[1] <= len(expected):
        return None
    names = [(f"l{layer}.k", f"l{layer}.v") for layer in range(geometry.layers)]
    shape = (geometry.kv_heads, first.shape[1], geometry.head_dim)
    if set(file.tensors) != {name for pair in names for name in pair}:
        return None
    if any((info.shape, info.dtype) != (shape, _WORD[dtype]) for info in file.tensors.values()):
        return None
    if not all(file.is_finite(name) for name in file.tensors):
        return None
    with safe_open(path, framework="pt") as opened:
        return [(opened.get_tensor(k), opened.get_tensor(v)) for k, v in names]
