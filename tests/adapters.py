"""Training states and adapters of a tiny model, with numbers large enough to change what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from memgrid.cube.peft import adapter_files
from memgrid.specs import AdapterKind, AdapterSpec
from memgrid.units import StoreDtype

PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=6, frozen_tokens=1)
LORA = AdapterSpec(kind=AdapterKind.LORA, rank=4, alpha=8, targets=("down_proj", "o_proj", "q_proj", "v_proj"))


def write_state(path: Path, adapter: AdapterSpec, model: Any, *, seed: int = 0) -> Path:
    """A state as training commits it: the adapter's parameters and Adam's, random but of the model's shapes."""
    draw = np.random.default_rng(seed)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tensors: dict[str, torch.Tensor] = {"step": torch.tensor([7])}
    if adapter.kind is AdapterKind.PREFIX:
        width = config.num_hidden_layers * 2 * config.num_key_value_heads * head_dim
        tensors["prompt_embeddings"] = _normal(draw, adapter.virtual_tokens, width)
    else:
        for name, module in model.named_modules():
            if name.rpartition(".")[2] not in adapter.targets:
                continue
            out_features, in_features = module.weight.shape
            if adapter.frozen_a_seed is None:
                a = _normal(draw, adapter.rank, in_features) / in_features**0.5
                tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = _normal(draw, out_features, adapter.rank) * 0.3
    moments = {
        f"adam.{moment}/{name}": torch.zeros_like(tensor)
        for name, tensor in tensors.items()
        if name != "step"
        for moment in "mv"
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, **moments}, path, {"format": "memgrid.state.v1"})
    return path


def write_adapter(
    folder: Path,
    adapter: AdapterSpec,
    model: Any,
    base: ModelIdentity,
    *,
    seed: int = 0,
    store_dtype: StoreDtype = StoreDtype.BFLOAT16,
) -> Path:
    """A folder as PEFT loads it."""
    state = write_state(folder.parent / f"{folder.name}.state.safetensors", adapter, model, seed=seed)
    config, tensors = adapter_files(state, adapter, base, store_dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG_FILE).write_bytes(config)
    (folder / ADAPTER_FILE).write_bytes(tensors)
    return folder


def _normal(draw: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))
