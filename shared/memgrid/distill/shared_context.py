"""Run a frozen model over many short sequences that all follow one context, whose KV cache exists once.

Knows attention and caches; knows nothing of conversations. The context may be a text that was read or a trained
prefix. Attention takes the scores on the context as one product for all sequences together (Hydragen, arXiv
2402.05099) and joins them with each sequence's own before the softmax, so nothing is copied per sequence.
Shapes: b rows, t new tokens of each, h heads, g KV heads, d head dimension, n tokens of context, s of a row so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from memgrid.distill.model import CausalLM

ATTENTION = "memgrid_shared_context"
_SCORES_MAX = 64 << 20
"""Scores held at once; what is more is attended piece by piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Keys (rotated) and values [g, n, d] of each layer, at positions 0 to n - 1."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def tokens(self) -> int:
        return int(self.keys[0].shape[1]) if self.keys else 0


NO_CONTEXT = Context(keys=(), values=())


def read_context(model: CausalLM, ids: Sequence[int]) -> Context:
    """Read some tokens once, from position 0."""
    from transformers import DynamicCache

    # A plain cache, without the model's config: one that knows sliding windows would drop what left them.
    cache = DynamicCache()
    with torch.inference_mode():
        model.base_model(
            input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True
        )
    return Context(
        keys=tuple(layer.keys[0] for layer in cache.layers), values=tuple(layer.values[0] for layer in cache.layers)
    )


class Rows:
    """Sequences of different lengths behind one context, left-aligned, with room for `capacity` tokens each.

    A row's numbers do not depend on the other rows, but for the last bits.
    """

    def __init__(self, model: CausalLM, context: Context, count: int, capacity: int) -> None:
        self._model = model
        self._context = context
        self._capacity = capacity
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slots = torch.empty(0)
        self._length = 0
        self.lengths = torch.zeros(count, dtype=torch.long, device=model.device)

    def feed(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append tokens to each row; the hidden states [b, t, hidden] of them, garbage behind a row's last."""
        counts = torch.tensor([len(ids) for ids in tokens], device=self.lengths.device)
        width = max(1, int(counts.max()))
        padded = [[*ids, *[0] * (width - len(ids))] for ids in tokens]
        ids = torch.tensor(padded, dtype=torch.long, device=self.lengths.device)
        # What is written behind a row's end is never seen: the next tokens overwrite it first.
        self._slots = self.lengths[:, None] + torch.arange(width, device=ids.device)  # [b, t]
        self._length = int(self._slots.max()) + 1
        assert self._length <= self._capacity
        seen = torch.arange(self._length, device=ids.device) <= self._slots[..., None]  # [b, t, s]
        with _attention(self._model), torch.inference_mode():
            hidden: torch.Tensor = self._model.base_model(
                input_ids=ids,
                position_ids=self._context.tokens + self._slots,
                attention_mask=seen[:, None],
                past_key_values=self,
                use_cache=True,
                shared_context=self._context,
            ).last_hidden_state
        self.lengths = self.lengths + counts
        return hidden

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        kept = torch.tensor(list(rows), dtype=torch.long, device=self.lengths.device)
        self.lengths = self.lengths[kept]
        self._own = {layer: (k[kept], v[kept]) for layer, (k, v) in self._own.items()}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What transformers calls on a cache: take new keys and values [b, g, t, d], give all [b, g, s, d]."""
        if layer not in self._own:
            b, g, _, d = keys.shape
            # Zeros, not whatever is there: what is masked is multiplied by nought, which NaN would survive.
            self._own[layer] = (keys.new_zeros(b, g, self._capacity, d), values.new_zeros(b, g, self._capacity, d))
        every = torch.arange(len(self._slots), device=keys.device)[:, None]
        for stored, new in zip(self._own[layer], (keys, values), strict=True):
            stored[every, :, self._slots] = new.transpose(1, 2)
        stored_keys, stored_values = self._own[layer]
        return stored_keys[:, :, : self._length], stored_values[:, :, : self._length]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    shared_context: Context,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query [b, h, t, d], key and value [b, g, s, d] -> [b, t, h, d]."""
    b, h, t, _d = query.shape
    seen = h * (key.shape[2] + shared_context.tokens)
    columns = max(1, min(t, _SCORES_MAX // seen))
    rows = max(1, _SCORES_MAX // (seen * columns))
    layer: int = module.layer_idx
    parts = [
        [
            _attend(
                query[i : i + rows, :, j : j + columns],
                key[i : i + rows],
                value[i : i + rows],
                attention_mask[i : i + rows, :, j : j + columns],
                scaling,
                shared_context,
                layer,
            )
            for j in range(0, t, columns)
        ]
        for i in range(0, b, rows)
    ]
    return torch.cat([torch.cat(row, dim=2) for row in parts]).transpose(1, 2), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scaling: float,
    context: Context,
    layer: int,
) -> torch.Tensor:
    b, h, t, d = query.shape
    g, s = key.shape[1:3]
    n = context.tokens
    q = query.reshape(b, g, h // g * t, d) * scaling
    scores = (q @ key.transpose(-1, -2)).view(b, g, h // g, t, s).masked_fill(~seen[:, :, None], float("-inf"))
    if n:
        flat = q.transpose(0, 1).reshape(g, -1, d)  # [g, b h/g t, d]
        shared = (flat @ context.keys[layer].transpose(-1, -2)).view(g, b, h // g, t, n)
        scores = torch.cat([shared.transpose(0, 1), scores], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)  # [b, g, h/g, t, n + s]
    out = weights[..., n:].reshape(b, g, -1, s) @ value
    if n:
        flat = weights[..., :n].transpose(0, 1).reshape(g, -1, n)
        out = out + (flat @ context.values[layer]).view(g, b, -1, d).transpose(0, 1)
    return out.view(b, h, t, d)


@contextmanager
def _attention(model: CausalLM) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    former = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(former)
