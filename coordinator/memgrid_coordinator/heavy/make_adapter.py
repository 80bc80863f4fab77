"""The adapter in a training state, as it is scored and published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.peft import adapter_files
from memgrid.specs import AdapterSpec
from memgrid.units import StoreDtype
from memgrid_coordinator.heavy.made_file import Files, MadeFile

PUBLISHED_IN = StoreDtype.BFLOAT16


def make_adapter(
    *, out: Path, files: Files, adapter: AdapterSpec, base: ModelIdentity, detail: Mapping[str, Any]
) -> tuple[MadeFile, ...]:
    """adapter_model.safetensors and adapter_config.json; raises InvalidError when the state holds no such adapter."""
    (state,) = files["state"]
    config, tensors = adapter_files(state, adapter, base, PUBLISHED_IN)
    (out / "adapter_config.json").write_bytes(config)
    (out / "adapter_model.safetensors").write_bytes(tensors)
    return (
        MadeFile(name="config", path=out / "adapter_config.json"),
        MadeFile(name="adapter", path=out / "adapter_model.safetensors", detail=detail),
    )
