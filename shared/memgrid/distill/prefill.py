"""Read a text into its KV cache some tokens at a time, to the same bits wherever reading was taken up again.

Knows models and their caches; knows nothing of units or files. Shapes: L layers, g KV heads, p tokens of past, n new
tokens, d head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memgrid.distill.model import CausalLM

Pair = tuple[torch.Tensor, torch.Tensor]
_FLOPS_AT_ONCE = {"cuda": 1 << 44, "mps": 1 << 41}
_CPU_FLOPS_AT_ONCE = 1 << 37
"""Some seconds of a slow core's work, a second of a slow GPU's: so long it takes until an owner who wants the device
back is heard, and so much is lost with a kill."""
_LEAST = {"cuda": 256}
_LEAST_ELSEWHERE, _MOST = 64, 2048


def tokens_at_once(flops_per_token: int, device_kind: str) -> int:
    """How many tokens a forward pass reads: a power of two that hangs on model and kind of device alone.

    Were it fitted to the machine or to what is free, equal machines would not come to equal bits any more.

    >>> [tokens_at_once(2 * parameters, "cpu") for parameters in (106_000_000, 970_000_000, 7_500_000_000)]
    [512, 64, 64]
    >>> [tokens_at_once(2 * parameters, "cuda") for parameters in (106_000_000, 7_500_000_000, 70_000_000_000)]
    [2048, 1024, 256]
    """
    fitting = _FLOPS_AT_ONCE.get(device_kind, _CPU_FLOPS_AT_ONCE) // max(1, flops_per_token)
    least = _LEAST.get(device_kind, _LEAST_ELSEWHERE)
    return min(_MOST, max(least, 1 << max(0, fitting.bit_length() - 1)))


class Filling:
    """What transformers takes for a cache: room for all tokens at once, so that nothing is copied as it grows."""

    is_compileable = False

    def __init__(self, past: Sequence[Pair], tokens: int, read: Sequence[Pair] = ()) -> None:
        """Room for `tokens` new ones behind `past`, K and V [g, p, d] of each layer, none at the beginning of a text.

        `read` are K and V of the first new tokens, as a former run computed them.
        """
        self._given = [list(past), list(read)]
        self.start, self.done = (int(pairs[0][0].shape[1]) if pairs else 0 for pairs in self._given)
        self._room = self.start + tokens
        self._layers: list[Pair] = []

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Pair:
        """Take new keys and values [1, g, t, d], give those of all tokens so far."""
        if layer == len(self._layers):
            self._make_room(keys, values)
        begin = self.start + self.done
        end = begin + keys.shape[2]
        k, v = self._layers[layer]
        k[:, :, begin:end], v[:, :, begin:end] = keys, values
        return k[:, :, :end], v[:, :, :end]

    def _make_room(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        layer = len(self._layers)
        made = tuple(new.new_empty(1, new.shape[1], self._room, new.shape[3]) for new in (keys, values))
        end = 0
        for pairs in filter(None, self._given):
            begin, end = end, end + int(pairs[layer][0].shape[1])
            for half, former in zip(made, pairs[layer], strict=True):
                half[0, :, begin:end] = former.to(half.device, half.dtype)
        self._layers.append((made[0], made[1]))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start + self.done

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.start + self.done

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.start + self.done + query_length, 0

    def new(self, begin: int = 0) -> Iterator[Pair]:
        """K and V [g, done - begin, d] of each layer, of the new tokens from the one numbered `begin`."""
        if not self._layers:  # all of it was given, and no layer has asked yet
            yield from ((k[:, begin:], v[:, begin:]) for k, v in self._given[1])
            return
        window = slice(self.start + begin, self.start + self.done)
        for k, v in self._layers:
            yield k[0, :, window], v[0, :, window]


def read_some(model: CausalLM, tokens: Sequence[int], filling: Filling, count: int) -> None:
    """Read the next `count` of `tokens`; a failure in between leaves `filling` as it was."""
    part = list(tokens[filling.done : filling.done + count])
    begin = filling.start + filling.done
    with torch.inference_mode():
        model(
            input_ids=torch.tensor([part], device=model.device),
            position_ids=torch.arange(begin, begin + len(part), device=model.device)[None],
            past_key_values=filling,
            use_cache=True,
        )
    filling.done += len(part)


def read_at_once(model: CausalLM, tokens: Sequence[int], past: Sequence[Pair]) -> list[Pair]:
    """K and V [g, n, d] of each layer, of tokens that follow `past`."""
    filling = Filling(past, len(tokens))
    read_some(model, tokens, filling, len(tokens))
    return list(filling.new())


def flops_per_token(model: CausalLM) -> int:
    """Of a model's matrices without its embeddings; with a head of its own, of that too."""
    counts = [sum(each.numel() for each in part.parameters()) for part in (model, model.get_input_embeddings())]
    return 2 * int(counts[0] - counts[1])
