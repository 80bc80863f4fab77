"""Training states and adapters of a tiny model, with numbers large enough to change what it says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import ADAPTER_CONFIG_FILE, ADAPTER_FILE, Cost, Numerics, Quality, SourceText, Validation
from memgrid.cube.oci import OciManifest
from memgrid.cube.peft import adapter_files
from memgrid.cube.terms import subject_terms
from memgrid.digest import digest_of
from memgrid.signing import SigningKey
from memgrid.specs import AdapterKind, AdapterSpec
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_coordinator.heavy.assemble import AssembledCube, Making
from memgrid_coordinator.heavy.assemble_adapter import AdapterOrder, assemble_adapter
from memgrid_coordinator.heavy.plots import LossPoint

PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=6, frozen_tokens=1)
LORA = AdapterSpec(kind=AdapterKind.LORA, rank=4, alpha=8, targets=("down_proj", "o_proj", "q_proj", "v_proj"))
QUALITY = Quality(
    items=100,
    tokens=4000,
    nll_none=2.0,
    nll_cube=0.7,
    nll_text=0.5,
    kl_none=1.5,
    kl_cube=0.2,
    correct_none=0.4,
    correct_cube=0.9,
    exact_none=0.0,
    exact_cube=0.5,
)


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


def adapter_order(
    state: Path, adapter: AdapterSpec, base: ModelIdentity, *, name: str = "tests/valves", **changes: Any
) -> tuple[AdapterOrder, bytes]:
    """An order for the cube of a state, and the content of its adapter_model.safetensors."""
    store_dtype = changes.pop("store_dtype", StoreDtype.BFLOAT16)
    config, tensors = adapter_files(state, adapter, base, store_dtype)
    text = changes.pop("text", "The valve of the pump opens at three bar, and the valve closes at two.")
    order = AdapterOrder(
        name=name,
        version="1.0.0",
        title="The manual of the pump",
        licence="Apache-2.0",
        base=base,
        adapter=adapter,
        numerics=Numerics(compute_dtype=ComputeDtype.FLOAT32, store_dtype=store_dtype),
        token_count=64,
        terms=subject_terms(text),
        config=config,
        tensors=digest_of(tensors),
        tensors_bytes=len(tensors),
        sources=(SourceText(uri="docs/pump.md", digest=digest_of(text.encode()), licence="CC-BY-4.0", size_bytes=9),),
        lineage=(),
        quality=QUALITY,
        trace=tuple(LossPoint(step=step, tokens=90 * step, loss=2.5 / step + 0.2) for step in range(1, 33)),
        cost=Cost(flops=3 * 10**12, units=9),
        validation=Validation(policy="a segment drawn after the report is replayed", min_replicas=1, limits={}),
        recipe={"train": {"steps": 32, "learning_rate": 0.02, "seed": 1}},
        making=Making(
            builder="https://grid.example",
            campaign="pumps",
            started_at=datetime(2026, 11, 1, tzinfo=UTC),
            finished_at=datetime(2026, 11, 2, tzinfo=UTC),
            replicas=9,
            reports_rejected=0,
            spent_flops=3 * 10**12,
            device_seconds={"cpu": 60.0},
            hosts=("a",),
            largest_distance=0.1,
        ),
    )
    return replace(order, **changes), tensors


def make_parameter_cube(
    folder: Path,
    adapter: AdapterSpec,
    model: Any,
    base: ModelIdentity,
    key: SigningKey,
    *,
    seed: int = 0,
    **changes: Any,
) -> AssembledCube:
    """A whole signed cube in a folder, as the grid would publish it."""
    state = write_state(folder.parent / f"{folder.name}.state.safetensors", adapter, model, seed=seed)
    order, tensors = adapter_order(state, adapter, base, **changes)
    made = assemble_adapter(order, key)
    write_folder(folder, made, tensors)
    return made


def write_folder(folder: Path, made: AssembledCube, *payload: bytes) -> None:
    """Every file of an assembled cube, under the path it has in the cube."""
    contents = {digest_of(content): content for content in (*made.blobs, *payload)}
    oci = OciManifest.from_bytes(made.oci)
    for file in (oci.config, *oci.layers):
        path = folder / (file.title or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[file.digest])


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
