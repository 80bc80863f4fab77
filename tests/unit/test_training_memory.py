"""What training keeps in memory is what is stated, and grows with rows and tokens alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memgrid.distill.adapters import applied, expected_shapes, hidden_states
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.kinds.train import activation_bytes, feed_forward_width
from memgrid.specs import AdapterSpec, TrainSpec
from tests.training import LORA, PREFIX, make_spec


def kept_bytes(model: Any, spec: TrainSpec, rows: int) -> int:
    """The storages that autograd holds on to between forward and backward."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    shapes = expected_shapes(spec.adapter, model)
    leaves = {name: torch.randn(rows, *shape, requires_grad=True) for name, shape in shapes.items()}
    ids = torch.zeros(rows, spec.row_tokens, dtype=torch.int64)
    positions = torch.arange(spec.row_tokens).expand(rows, -1)
    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        applied(model, spec.adapter, leaves) as past,
    ):
        hidden = hidden_states(model, ids, positions, torch.ones_like(ids), past)
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves.values()}
    total = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)
    assert hidden.requires_grad
    return total


@pytest.mark.parametrize("adapter", [PREFIX, LORA], ids=["prefix", "lora"])
@pytest.mark.parametrize(("rows", "row_tokens", "layers"), [(1, 128, 2), (3, 128, 2), (1, 512, 2), (1, 128, 5)])
def test_what_is_kept_is_what_is_stated(adapter: AdapterSpec, rows: int, row_tokens: int, layers: int) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    spec = make_spec(adapter, row_tokens=row_tokens)
    geometry = geometry_of_model(model)
    assert feed_forward_width(geometry) == 256
    found, stated = kept_bytes(model, spec, rows), activation_bytes(spec, geometry, rows)
    assert found <= stated <= 1.35 * found
