"""Move cached keys to other positions: rotate them by the angle between where they were and where they go.

Rotary embedding turns each pair of a key's dimensions by position * frequency, so a shift by d positions is one more
turn by d * frequency. That holds where frequencies are fixed and the turned pairs are (i, i + half).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memgrid.cube.identity import ModelIdentity
from memgrid.errors import DoesNotFitError

if TYPE_CHECKING:
    import torch

_FIXED_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary types whose frequencies depend neither on the length of the text nor on a second or third position."""
_HALF_ROTATED = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "olmo", "olmo2", "phi", "phi3", "starcoder2",
    "stablelm",
})  # fmt: skip
"""Model types that turn dimension i with i + half in every layer; others pair neighbours, or skip layers."""


def check_rerotatable(identity: ModelIdentity) -> None:
    """Raises DoesNotFitError naming what stands in the way of moving this model's keys."""
    check_rotation(str(identity.config.get("model_type")), identity.sliding_window, identity.rope)


def check_rotation(
    model_type: str, sliding_window: int | None, rope_by_layers: Mapping[str, Mapping[str, Any]]
) -> None:
    """The same for a model that is known by its configuration alone."""
    if model_type not in _HALF_ROTATED:
        raise DoesNotFitError(f"re-rotation: model_type {model_type!r} is not known to turn halves in every layer")
    if sliding_window is not None:
        raise DoesNotFitError(f"re-rotation: sliding_window {sliding_window}: local layers can't be moved")
    if set(rope_by_layers) != {"all"}:
        raise DoesNotFitError("re-rotation: rope: expected one rotary embedding for all layers")
    rope = rope_by_layers["all"]
    if rope["type"] not in _FIXED_TYPES or "mrope_section" in rope:
        kind = "M-RoPE" if "mrope_section" in rope else rope["type"]
        raise DoesNotFitError(f"re-rotation: rope type {kind!r}: its angles depend on more than the position")


def inverse_frequencies(rope: Mapping[str, Any]) -> torch.Tensor:
    """Angle per position of each pair, float32 [rotary_dim / 2].

    Source: the formulas of "RoFormer" (default), "Extending context by positional interpolation" (linear),
    Llama 3.1 (llama3) and "YaRN" (yarn), in the order of operations of transformers, so that they agree to the bit.
    """
    import torch

    dim = rope["rotary_dim"]
    frequencies = 1.0 / (rope["theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    match rope["type"]:
        case "default":
            return frequencies
        case "linear":
            return frequencies / rope["factor"]
        case "llama3":
            return _llama3(frequencies, rope)
        case "yarn":
            return _yarn(frequencies, rope)
    raise DoesNotFitError(f"rope type {rope['type']!r}: its angles depend on more than the position")


def rerotate(k: torch.Tensor, shift: int, frequencies: torch.Tensor) -> torch.Tensor:
    """k [..., head_dim] as if computed `shift` positions later; float32, where 16 bits would blur the angle.

    A scale that YaRN put on cosine and sine stays on k as it was: rotation does not change it.
    """
    import torch

    angles = shift * frequencies.to(torch.float64)
    cos = torch.cat((angles, angles)).cos().to(k.device, torch.float32)
    sin = torch.cat((angles, angles)).sin().to(k.device, torch.float32)
    rotary_dim = cos.shape[0]
    turned, still = k[..., :rotary_dim].to(torch.float32), k[..., rotary_dim:].to(torch.float32)
    half = rotary_dim // 2
    crossed = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
    return torch.cat((turned * cos + crossed * sin, still), dim=-1)


def _llama3(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    import torch

    length, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    waves = 2 * math.pi / frequencies
    stretched = torch.where(waves > length / low, frequencies / rope["factor"], frequencies)
    smooth = (length / waves - low) / (high - low)
    blended = (1 - smooth) * stretched / rope["factor"] + smooth * stretched
    between = ~(waves < length / high) & ~(waves > length / low)
    return torch.where(between, blended, stretched)


def _yarn(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """A ramp over the dimensions from kept (fast) to stretched (slow) frequencies."""
    import torch

    dim, theta, length = rope["rotary_dim"], rope["theta"], rope["original_max_position_embeddings"]

    def dimension_of(turns: float) -> float:
        return float(dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta)))

    low, high = dimension_of(rope.get("beta_fast") or 32), dimension_of(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (max(high - low, 0.001)), 0, 1)
    kept = 1 - ramp
    stretched = 1.0 / (rope["factor"] * (1.0 / frequencies))
    return stretched * (1 - kept) + frequencies * kept
