"""Read a transformers configuration: sizes, rotary embedding, sliding windows. No torch, no transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry

VOLATILE_KEYS = frozenset({
    # who loaded it, with what
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map", "architectures",
    # training and output only
    "initializer_range", "attention_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop",
    "pretraining_tp", "output_hidden_states", "output_attentions", "return_dict", "id2label", "label2id",
    "problem_type", "chunk_size_feed_forward", "is_encoder_decoder",
    # tokens are the tokenizer's business
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    # kept apart, because their spelling changed between releases
    "rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
})  # fmt: skip
"""Keys of config.json that do not change a KV cache or that `rope` and `sliding_window` cover."""

_DEFAULT_THETA = 10_000.0


def config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration."""
    inner = config.get("text_config")
    return dict(inner) if isinstance(inner, Mapping) else dict(config)


def geometry_of(config: Mapping[str, Any], *, parameters: int, tied: bool) -> ModelGeometry:
    """The sizes of a model from its configuration; raises InvalidError naming the key."""
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    return ModelGeometry(
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", hidden // heads),
        hidden=hidden,
        vocab=_size(config, "vocab_size"),
        parameters=parameters,
        tied_embeddings=tied,
    )


def rope_of(config: Mapping[str, Any], head_dim: int) -> dict[str, dict[str, Any]]:
    """Rotary parameters by layer type, "all" where every layer has the same; empty without rotary embedding.

    Both spellings are read: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before).

    >>> rope_of({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 64)
    {'all': {'type': 'llama3', 'theta': 500000.0, 'rotary_dim': 64, 'factor': 8.0}}
    """
    given = config.get("rope_parameters")
    if not isinstance(given, Mapping):
        if "rope_theta" not in config and not config.get("rope_scaling"):
            return {}
        scaling = config.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise InvalidError(f"config.json: rope_scaling: expected a mapping, found {scaling!r}"[:200])
        given = {"rope_theta": config.get("rope_theta", _DEFAULT_THETA), **scaling}
    layered = {key: value for key, value in given.items() if isinstance(value, Mapping)}
    groups = layered or {"all": given}
    return {name: _rope(group, config, head_dim) for name, group in sorted(groups.items())}


def sliding_window_of(config: Mapping[str, Any]) -> int | None:
    """The window of the layers that see only the last tokens; None when every layer sees everything."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return None
    types = config.get("layer_types")
    return window if not types or any("sliding" in str(kind) for kind in types) else None


def _rope(group: Mapping[str, Any], config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    rest = {key: value for key, value in group.items() if value is not None}
    kind = rest.pop("rope_type", None) or rest.pop("type", None) or "default"
    rest.pop("type", None)
    theta = rest.pop("rope_theta", None) or config.get("rope_theta") or _DEFAULT_THETA
    share = rest.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    numbers = {"theta": _number("rope_theta", theta), "rotary_dim": int(head_dim * _number("rotary factor", share))}
    return {"type": str(kind), **numbers, **rest}


def _number(key: str, value: Any) -> float:
    # No angle and no share of a head is anywhere near.
    if type(value) not in (int, float) or not abs(value) < 1e12:
        raise InvalidError(f"config.json: {key}: expected a number, found {value!r}"[:200])
    return float(value)


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or value < 1:
        raise InvalidError(f"config.json: {key}: expected a whole number above 0, found {value!r}"[:200])
    return value
