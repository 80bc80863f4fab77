"""Models that are not the model: coarser weights, weights trained a little further, layers left out, known bugs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from memgrid.distill.model import TORCH_DTYPE, CausalLM
from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.calibration.ways import Products, Way

_GROUP = 64
_NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
_TRAINED_STEPS = 3
_TF32_CUT = 13

Rounding = Callable[[torch.Tensor], torch.Tensor]


def load_afresh(folder: Path, dtype: torch.dtype) -> CausalLM:
    """A model of its own, to be changed; the one that `memgrid.distill.model` holds stays as it is."""
    from transformers import AutoModelForCausalLM  # takes a second: importing this file should not

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation="sdpa",
    )
    return model.eval().requires_grad_(False)


def model_of(folder: Path, way: Way, cheat: str, texts: Sequence[Sequence[int]]) -> tuple[CausalLM, float]:
    """The model as this way computes with it, honestly or not, and how far its weights moved (1: not by that)."""
    model = load_afresh(folder, TORCH_DTYPE[way.compute_dtype])
    moved = CHANGES[cheat](model, texts) if cheat in CHANGES else 1.0
    with_products(model, way.products).set_attn_implementation(way.attention)
    return model, moved


def quantised(folder: Path, rounding: str = "int8 weights") -> CausalLM:
    """The model in float32 with the matrices of its layers rounded so, as `ways.WEIGHT_CHEATS` names it."""
    model = load_afresh(folder, torch.float32)
    CHANGES[rounding](model, ())
    return model


def matrices(model: CausalLM) -> list[nn.Linear]:
    """The matrices of the layers; embeddings and output head, which quantisers leave alone, are none of them."""
    head = model.get_output_embeddings()
    found = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    if not found:
        raise InvalidError("the model has no linear layers: memgrid can't make cheats of it")
    return found


def _rounded(rounding: Rounding) -> Callable[[CausalLM, Sequence[Sequence[int]]], float]:
    """A change of a model's matrices, each row an output channel; it returns the share that it moved them by."""

    def change(model: CausalLM, texts: Sequence[Sequence[int]]) -> float:
        moved = length = 0.0
        for module in matrices(model):
            before = module.weight.detach().float()
            after = rounding(before)
            moved += float((after - before).square().sum())
            length += float(before.square().sum())
            module.weight.data.copy_(after)
        return math.sqrt(moved / length)

    return change


def _whole(levels: int) -> Rounding:
    def round_rows(weight: torch.Tensor) -> torch.Tensor:
        scale = (weight.abs().amax(dim=1, keepdim=True) / levels).clamp(min=1e-12)
        return (weight / scale).round() * scale

    return round_rows


def _in_groups(rounding: Rounding) -> Rounding:
    def round_groups(weight: torch.Tensor) -> torch.Tensor:
        short = -weight.shape[1] % _GROUP
        padded = functional.pad(weight, (0, short))
        grouped = rounding(padded.reshape(-1, _GROUP)).reshape(padded.shape)
        return grouped[:, : weight.shape[1]]

    return round_groups


def _nf4(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    levels = torch.tensor(_NF4, dtype=weight.dtype)
    middles = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(weight / scale, middles)] * scale


def _fp8(weight: torch.Tensor) -> torch.Tensor:
    scale = (weight.abs().amax(dim=1, keepdim=True) / 448).clamp(min=1e-12)
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def _trained(share: float) -> Callable[[CausalLM, Sequence[Sequence[int]]], float]:
    """Three steps on the texts against the gradient's signs, as Adam begins, that move every matrix by this share."""

    def change(model: CausalLM, texts: Sequence[Sequence[int]]) -> float:
        def step(parameter: nn.Parameter) -> None:
            assert parameter.grad is not None
            size = share * parameter.detach().float().square().mean().sqrt() / _TRAINED_STEPS
            parameter.data.sub_((size * parameter.grad.sign()).to(parameter.dtype))
            parameter.grad = None  # so that one gradient exists at a time, however large the model

        hooks = []
        for module in matrices(model):
            module.weight.requires_grad_(True)
            hooks.append(module.weight.register_post_accumulate_grad_hook(step))
        with torch.enable_grad():
            for number in range(_TRAINED_STEPS):
                ids = torch.tensor([list(texts[number % len(texts)])])
                model(input_ids=ids, labels=ids).loss.backward()
        for hook in hooks:
            hook.remove()
        model.requires_grad_(False)
        return share

    return change


def _without_layer(place: float) -> Callable[[CausalLM, Sequence[Sequence[int]]], float]:
    """One layer hands on what it is given; its cache has to be made up (`memgrid_coordinator…caches`)."""

    def change(model: CausalLM, texts: Sequence[Sequence[int]]) -> float:
        layers = model.base_model.layers
        layer = layers[round(place * (len(layers) - 1))]
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        return 1.0

    return change


def _rounded_angles(model: CausalLM, texts: Sequence[Sequence[int]]) -> float:
    """What `model.to(bfloat16)` does to RoPE: its inverse frequencies lose their last bits."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.copy_(buffer.to(torch.bfloat16).to(buffer.dtype))
    return 1.0


def _whole_inputs(model: CausalLM, texts: Sequence[Sequence[int]]) -> float:
    """8-bit weights and, token by token, 8-bit inputs."""
    moved = CHANGES["int8 weights"](model, texts)
    for module in matrices(model):
        module.register_forward_pre_hook(_round_input)
    return moved


def _round_input(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    values = given[0].float()
    scale = (values.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-12)
    return (((values / scale).round() * scale).to(given[0].dtype), *given[1:])


CHANGES: dict[str, Callable[[CausalLM, Sequence[Sequence[int]]], float]] = {
    "int8 weights": _rounded(_whole(127)),
    "int8 weights and inputs": _whole_inputs,
    "fp8 weights": _rounded(_fp8),
    "int6 weights": _rounded(_whole(31)),
    "int4 weights": _rounded(_in_groups(_whole(7))),
    "nf4 weights": _rounded(_in_groups(_nf4)),
    "fine-tuned by 2.5e-4": _trained(2.5e-4),
    "fine-tuned by 1.2e-5": _trained(1.2e-5),
    "first layer skipped": _without_layer(0.0),
    "middle layer skipped": _without_layer(0.5),
    "last layer skipped": _without_layer(1.0),
    "angles of RoPE rounded": _rounded_angles,
}
"""Each changes a model in place and returns by how much its weights moved, relative to them; 1 when not by that."""


def with_products(model: CausalLM, products: Products) -> CausalLM:
    """The model with its matrices multiplied so; what it is made of keeps its dtype."""
    if products is not Products.NATIVE:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.forward = _product(module, products)
    return model


def _product(module: nn.Linear, products: Products) -> Callable[[torch.Tensor], torch.Tensor]:
    cut: Rounding = _cut if products is Products.TF32 else lambda values: values
    weight = cut(module.weight.detach().float())
    bias: Any = None if module.bias is None else module.bias.detach().float()
    rounded: dict[torch.dtype, torch.Tensor] = {}

    def forward(values: torch.Tensor) -> torch.Tensor:
        kind = values.device.type
        if not torch.is_autocast_enabled(kind):
            return functional.linear(cut(values.float()), weight, bias).to(values.dtype)
        dtype = torch.get_autocast_dtype(kind)
        if dtype not in rounded:
            rounded[dtype] = weight.to(dtype).float()
        with torch.autocast(kind, enabled=False):
            return functional.linear(values.to(dtype).float(), rounded[dtype], bias).to(dtype)

    return forward


def _cut(values: torch.Tensor) -> torch.Tensor:
    """To the nearest number of ten bits of mantissa."""
    bits = values.contiguous().view(torch.int32)
    half = 1 << (_TF32_CUT - 1)
    return ((bits + half) & -(1 << _TF32_CUT)).view(torch.float32)
