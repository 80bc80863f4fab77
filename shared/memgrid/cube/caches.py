"""The one file that knows transformers' cache classes: make one, fill it, read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


def new_cache() -> DynamicCache:
    """An empty cache whose layers keep every token.

    Made without the model's config on purpose: with it, layers with a sliding window would forget what lies outside.
    """
    from transformers import DynamicCache

    return DynamicCache()


def append(cache: DynamicCache, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
    """Add k, v [1, kv_heads, tokens, head_dim] to a layer; copies them, so the cache owns what it holds."""
    cache.update(k, v, layer)


def forget_last(cache: DynamicCache, tokens: int) -> None:
    """Take the last so many tokens out of every layer."""
    if tokens:
        # Positive numbers once meant what should be left, and are refused today.
        cache.crop(-tokens)


def layers_of(cache: DynamicCache) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """k, v [1, kv_heads, tokens, head_dim] of each layer."""
    for k, v, *_ in cache:
        yield k, v


def keeps_attention_only(config: Any) -> bool:
    """Whether every layer remembers by keys and values; recurrent and linear layers hold a state instead."""
    types = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    return all("attention" in kind and "linear" not in kind for kind in types)
