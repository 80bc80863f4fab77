"""Adapters as plain tensors: put on a frozen causal language model, and taken off again without a trace.

Knows PEFT's layouts, transformers' caches and torch's hooks; knows nothing of training, units or where files come
from. Shapes: m rows, t tokens of a row, p virtual tokens, L layers, h KV heads, d head dimension, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from memgrid.distill.model import CausalLM
from memgrid.errors import InvalidError
from memgrid.kinds.lowrank import seeded_a
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import AdapterKind, AdapterSpec

Tensors = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]
"""K and V of a layer."""

PREFIX_TENSOR = "prompt_embeddings"
"""[p, L * 2 * h * d]: for each token K then V of layer after layer; keys are rotated to positions 0 to p - 1."""
_LORA = re.compile(r"base_model\.model\.(.{1,200})\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """An adapter ready to be applied; LoRA's A is always there, drawn from its seed where the file has none."""

    spec: AdapterSpec
    tensors: Tensors


def load_adapter(path: Path, spec: AdapterSpec, model: CausalLM) -> Adapter:
    """An adapter file with PEFT's names (or a training state), as float32 on the model's device.

    Raises InvalidError naming the tensor that is missing, of another shape, or not finite.
    """
    file = TensorFile.open(path)
    tensors: Tensors = {}
    for name, shape in expected_shapes(spec, model).items():
        info = file.tensors.get(name)
        if info is None and spec.frozen_a_seed is not None and name.endswith(".lora_A.weight"):
            continue
        if info is None or info.shape != shape:
            found = "none" if info is None else str(list(info.shape))
            raise InvalidError(f"{path.name}: {name}: expected {list(shape)}, found {found}")
        if not file.is_finite(name):
            raise InvalidError(f"{path.name}: {name}: contains NaN or infinity")
        tensors[name] = torch.from_numpy(file.float32(name).copy()).to(model.device)
    return Adapter(spec=spec, tensors={**seeded(spec, model), **tensors})


def expected_shapes(spec: AdapterSpec, model: CausalLM) -> dict[str, tuple[int, ...]]:
    """What an adapter of this spec holds, by PEFT's names; raises InvalidError when a target fits no module."""
    if spec.kind is AdapterKind.PREFIX:
        layers, heads, dim = prefix_geometry(model)
        return {PREFIX_TENSOR: (spec.virtual_tokens, layers * 2 * heads * dim)}
    shapes: dict[str, tuple[int, ...]] = {}
    for module in lora_modules(spec, model):
        out_features, in_features = model.get_submodule(module).weight.shape
        shapes[f"base_model.model.{module}.lora_A.weight"] = (spec.rank, in_features)
        shapes[f"base_model.model.{module}.lora_B.weight"] = (out_features, spec.rank)
    return shapes


def lora_modules(spec: AdapterSpec, model: CausalLM) -> list[str]:
    """The linear layers that LoRA's targets name, in the model's order."""
    found = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in spec.targets and isinstance(module, torch.nn.Linear)
    ]
    missing = set(spec.targets) - {name.rpartition(".")[2] for name in found}
    if missing or not found:
        names = ", ".join(sorted(missing)) or "at all"
        raise InvalidError(f"adapter: targets: the model has no linear layer {names}")
    return found


def seeded(spec: AdapterSpec, model: CausalLM) -> Tensors:
    """LoRA's A of every module when it is drawn from a seed; otherwise nothing."""
    if spec.frozen_a_seed is None:
        return {}
    return {
        f"base_model.model.{module}.lora_A.weight": torch.from_numpy(
            seeded_a(spec.frozen_a_seed, module, spec.rank, model.get_submodule(module).in_features)
        ).to(model.device)
        for module in lora_modules(spec, model)
    }


def prefix_geometry(model: CausalLM) -> tuple[int, int, int]:
    """Layers, KV heads and head dimension, as a prefix is cut by."""
    config = model.config.get_text_config(decoder=True)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.num_hidden_layers, heads, dim


def prefix_pairs(embeddings: torch.Tensor, model: CausalLM) -> list[Pair]:
    """`prompt_embeddings` [p, L*2*h*d] or [m, p, L*2*h*d] as K, V [m, h, p, d] of each layer; gradients flow."""
    layers, heads, dim = prefix_geometry(model)
    rows = embeddings[None] if embeddings.ndim == 2 else embeddings
    cut = rows.view(*rows.shape[:2], layers * 2, heads, dim).permute(2, 0, 3, 1, 4)  # [2L, m, h, p, d]
    return [(cut[2 * layer], cut[2 * layer + 1]) for layer in range(layers)]


@contextmanager
def applied(model: CausalLM, spec: AdapterSpec, tensors: Mapping[str, torch.Tensor]) -> Iterator[list[Pair]]:
    """Use an adapter for a while: LoRA by hooks, a prefix as the past that is yielded for `hidden_states`.

    Tensors are as stored, or have one more dimension in front: one copy a row, so that rows get gradients of their
    own. On leaving, the model is what it was, to the bit.
    """
    if spec.kind is AdapterKind.PREFIX:
        yield prefix_pairs(tensors[PREFIX_TENSOR], model)
    else:
        with lora_hooks(model, tensors, alpha=spec.alpha, rank=spec.rank):
            yield []


@contextmanager
def lora_hooks(model: CausalLM, tensors: Mapping[str, torch.Tensor], *, alpha: float, rank: int) -> Iterator[None]:
    """While open, each module adds (alpha / rank) * B A x to its output; its weights are never touched.

    `tensors` are `base_model.model.<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], or one more
    dimension in front for a copy a row. Source: "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
    """
    halves = lora_halves(tensors)
    with ExitStack() as stack:
        for module, (a, b) in halves.items():
            hook = _lora_hook(a, b, alpha / rank)
            stack.callback(model.get_submodule(module).register_forward_hook(hook).remove)
        yield


def lora_halves(tensors: Mapping[str, torch.Tensor]) -> dict[str, Pair]:
    """A and B of each module; raises InvalidError when a half is missing or a name is none of LoRA's."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _LORA.fullmatch(name)
        if match is None:
            raise InvalidError(f"adapter: {name[:200]}: expected a name such as base_model.model.….lora_A.weight")
        found.setdefault(match[1], {})[match[2]] = tensor
    for module, halves in found.items():
        if len(halves) != 2:
            raise InvalidError(f"adapter: {module}: expected lora_A and lora_B")
    return {module: (halves["A"], halves["B"]) for module, halves in found.items()}


def _lora_hook(a: torch.Tensor, b: torch.Tensor, scale: float) -> Any:
    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        # Autocast picks the dtype of products; without it they are taken in the adapter's, the more exact one.
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(a.dtype)
        if a.ndim == 2:
            added = functional.linear(functional.linear(x, a), b)
        else:
            # Row by row, not as one batched product, whose kernel could depend on how many rows there are.
            rows = [functional.linear(functional.linear(x[i], a[i]), b[i]) for i in range(x.shape[0])]
            added = torch.stack(rows)
        return output + (added * scale).to(output.dtype)

    return add


def hidden_states(
    model: CausalLM,
    ids: torch.Tensor,
    positions: torch.Tensor,
    segments: torch.Tensor,
    past: list[Pair],
    past_visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last hidden states [m, t, hidden] of packed rows that all continue from one past.

    `ids`, `positions` and `segments` are [m, t]. Positions count from the end of the past. A token sees the past,
    every earlier token of segment 0 and every earlier one of its own segment; segment -1 is filling. `past_visible`
    [m, P] is False where a row's past is filling. Raises InvalidError for models whose head does more than multiply.
    """
    check_head(model)
    rows, length = ids.shape
    past_length = past[0][0].shape[2] if past else 0
    own = segments[:, :, None] == segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    visible = (own | (segments == 0)[:, None, :]) & causal  # [m, t, t]
    if past:
        before = torch.ones(rows, past_length, dtype=torch.bool, device=ids.device)
        before = before if past_visible is None else past_visible
        positions = positions + before.sum(1, keepdim=True)
        visible = torch.cat((before[:, None, :].expand(rows, length, past_length), visible), dim=2)
    output = model.get_decoder()(
        input_ids=ids,
        position_ids=positions,
        attention_mask=_mask(visible[:, None], model),
        past_key_values=_cache(past, rows, model),
        use_cache=bool(past),
    )
    states: torch.Tensor = output.last_hidden_state
    return states


def check_head(model: CausalLM) -> None:
    """Raises InvalidError unless logits are the head's product alone: some models cap or scale them afterwards."""
    config = model.config.get_text_config(decoder=True)
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 0, 1, 1.0):
            raise InvalidError(f"model: config.json: {name}: models that change their logits can't be distilled yet")


def _cache(past: list[Pair], rows: int, model: CausalLM) -> Any:
    if not past:
        return None
    # Without the model's config: with it, layers with a sliding window would forget what lies outside.
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (k, v) in enumerate(past):
        # Copies of one row's past are views: a gradient adds up over rows by itself.
        cache.update(k.expand(rows, -1, -1, -1).to(model.dtype), v.expand(rows, -1, -1, -1).to(model.dtype), layer)
    return cache


def _mask(visible: torch.Tensor, model: CausalLM) -> torch.Tensor:
    """[m, 1, t, P + t] to be added to the scores; made once, where every layer would turn True and False into it."""
    device = visible.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )
