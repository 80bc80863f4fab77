"""A claimed cache, read layer by layer, as the past of a few of its own tokens that are computed again.

Knows KV files and transformers' caches; knows nothing of limits. Never more than one layer is held in float32.
Shapes: g KV heads, p tokens of past, t tokens computed again, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memgrid.errors import InvalidError
from memgrid.kinds.prefill import KvFile, read_kv
from memgrid.units import StoreDtype

TORCH_STORE = {
    StoreDtype.FLOAT32: torch.float32,
    StoreDtype.FLOAT16: torch.float16,
    StoreDtype.BFLOAT16: torch.bfloat16,
}
Watch = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with each layer and its new keys and values [b, g, t, d]."""


class SeenEnoughError(Exception):
    """Thrown through a model's forward pass once its last wanted keys and values are known."""


class ClaimedKv:
    """The accepted files before a unit, and the unit's own as claimed; positions count from the very first token."""

    def __init__(self, past: Sequence[Path], own: Path, start: int) -> None:
        """Raises InvalidError when the past does not end where the unit starts."""
        self._files = [*(read_kv(path) for path in past), read_kv(own)]
        self.start = start
        self.layers = len(self.own.k)
        found = sum(len(file.tokens) for file in self._files[:-1])
        if found != start:
            raise InvalidError(f"unit starts at position {start}, but its past holds {found} tokens")

    @property
    def own(self) -> KvFile:
        return self._files[-1]

    def before(
        self, layer: int, stop: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [1, g, stop, d] of all tokens before a position."""
        halves: list[list[torch.Tensor]] = [[], []]
        begin = 0
        for file in self._files:
            wanted = range(max(0, min(stop - begin, len(file.tokens))))
            halves[0].append(_floats(file.k[layer], wanted))
            halves[1].append(_floats(file.v[layer], wanted))
            begin += len(file.tokens)
        k, v = (torch.cat(parts, dim=1)[None].to(device, dtype) for parts in halves)
        return k, v

    def of_unit(self, layer: int, tokens: Sequence[range]) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [g, t, d] of some of the unit's tokens, in float32."""
        k, v = (
            torch.cat([_floats(half[layer], window) for window in tokens], dim=1) for half in (self.own.k, self.own.v)
        )
        return k, v


def _floats(stored: np.ndarray[Any, Any], tokens: range) -> torch.Tensor:
    """[g, n, d] as stored -> float32 [g, len(tokens), d]; bfloat16 is stored as uint16 bits."""
    chosen = stored[:, tokens.start : tokens.stop].copy()
    if chosen.dtype == np.uint16:
        return torch.from_numpy(chosen.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(chosen).float()


class Past:
    """What transformers takes for a cache: `seen` claimed tokens come before the new ones, in every layer."""

    is_compileable = False

    def __init__(self, claimed: ClaimedKv | None, seen: int, watch: Watch, layers: int) -> None:
        """With no `claimed`, or none seen, there is no past. After `layers` layers the forward pass ends."""
        self._claimed, self._seen, self._watch, self._layers = claimed, seen, watch, layers

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is called with new keys and values [1, g, t, d]; gives all [1, g, p + t, d]."""
        self._watch(layer, keys, values)
        if layer + 1 == self._layers:
            raise SeenEnoughError
        if self._claimed is None or not self._seen:
            return keys, values
        k, v = self._claimed.before(layer, self._seen, keys.device, keys.dtype)
        return torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._seen + query_length, 0
