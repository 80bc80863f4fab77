"""Masks for several windows of a text in one pass of a model, each over the same claimed past.

Knows how transformers takes masks. One pass reads the weights once, which is most of what a few tokens cost.
Shapes: t tokens of all windows, p of claimed past.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from memgrid.distill.model import CausalLM

Masks: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
_FULL, _SLIDING = "full_attention", "sliding_attention"


def masks_of(model: CausalLM, windows: Sequence[range], seen: int) -> Masks | None:
    """To be added to the scores [1, 1, t, seen + t], in the form the model takes; None when it knows other masks.

    `windows` are positions. A token sees the claimed tokens before its window and those of its window up to itself,
    and in layers of sliding attention no further back than they slide.
    """
    config = model.config.get_text_config(decoder=True)
    types = set(getattr(config, "layer_types", None) or ())
    sliding = getattr(config, "sliding_window", None)
    if not types:
        types = {_SLIDING if sliding else _FULL}
    if not types <= {_FULL, _SLIDING} or (_SLIDING in types and not sliding):
        return None
    reach = {_FULL: None, _SLIDING: sliding}
    masks = {kind: _mask(windows, seen, reach[kind], model) for kind in types}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _mask(windows: Sequence[range], seen: int, reach: int | None, model: CausalLM) -> torch.Tensor:
    positions = torch.tensor([position for window in windows for position in window])
    whose = torch.tensor([number for number, window in enumerate(windows) for _ in window])
    first = torch.tensor([window.start for window in windows for _ in window])
    claimed = torch.arange(seen)
    past = claimed[None] < first[:, None]
    own = (whose[:, None] == whose[None]) & (positions[None] <= positions[:, None])
    visible = torch.cat([past, own], dim=1)
    if reach is not None:
        visible &= positions[:, None] - torch.cat([claimed, positions])[None] < reach
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill_(~visible, torch.finfo(model.dtype).min)
    return mask[None, None].to(model.device)


def fed(model: CausalLM, ids: Sequence[int], positions: Sequence[int], past: Any, masks: Masks | None) -> None:
    """One forward pass without a head; what comes of it is what `past` was shown."""
    with torch.inference_mode():
        model.base_model(
            input_ids=torch.tensor([list(ids)], device=model.device),
            position_ids=torch.tensor([list(positions)], device=model.device),
            attention_mask=masks,
            past_key_values=past,
            use_cache=True,
        )
