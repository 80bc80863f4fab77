"""Load a frozen causal language model from a folder; the last one stays loaded.

Knows safetensors and transformers; knows nothing of units.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from memgrid.units import ComputeDtype

CausalLM = Any
"""A transformers model with a language-model head; the library brings no types."""
TORCH_DTYPE = {
    ComputeDtype.FLOAT32: torch.float32,
    ComputeDtype.FLOAT16: torch.float16,
    ComputeDtype.BFLOAT16: torch.bfloat16,
}

_SHARE_FOR_WEIGHTS = 0.8
DeviceMap = dict[str, "torch.device | int | str"]
"""Where each part of a model lies, by the name of the part; "" is all of it."""

_lock = threading.Lock()
_last: tuple[tuple[Path, torch.dtype, tuple[torch.device, ...]], CausalLM] | None = None


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, *, beside: Sequence[torch.device] = ()
) -> CausalLM:
    """The model with its head, in evaluation mode and with frozen weights; no code from the folder ever runs.

    `dtype` is given at loading, not by `.to(dtype)` later: that would round RoPE's inverse frequencies too.
    A process holds one model: asking for another lets go of the former first, for both may not fit. With devices
    `beside` the first one its layers are spread over all of them, one after the other. Raises MemoryError when they
    have no room for it.
    """
    global _last
    wanted = (folder.resolve(), dtype, (device, *beside))
    with _lock:
        if _last is None or _last[0] != wanted:
            _last = None
            gc.unfreeze()
            gc.collect()
            device_map = spread(folder, dtype, rooms((device, *beside))) if beside else {"": device}
            _last = (wanted, load_onto(folder, dtype, device_map))
            # accelerate collects garbage before it tries a batch: a sixth of a second each time for what will stay.
            gc.collect()
            gc.freeze()
        return _last[1]


def rooms(devices: Sequence[torch.device]) -> dict[int, int]:
    """Bytes for weights on each of these GPUs, by index; what is left is for caches and products."""
    return {device.index: int(_SHARE_FOR_WEIGHTS * torch.cuda.mem_get_info(device)[0]) for device in devices}


def spread(folder: Path, dtype: torch.dtype, room: Mapping[int, int]) -> DeviceMap:
    """Which device each part of the model goes to, so that what is used one after the other lies side by side.

    Raises MemoryError when it has no room on the devices that are named: parts on a disk would be slower than any
    other host.
    """
    from accelerate import infer_auto_device_map, init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    empty.tie_weights()
    split = list(empty._no_split_modules or ())
    found: DeviceMap = infer_auto_device_map(empty, dict(room), no_split_module_classes=split, dtype=dtype)
    if not set(found.values()) <= set(room):
        gigabytes = sum(room.values()) / 1e9
        raise MemoryError(f"the model does not fit into the {gigabytes:.1f} GB that {len(room)} devices have for it")
    return found


@contextmanager
def without_fused_attention(model: CausalLM, on: bool = True) -> Iterator[None]:
    """Attention as plain products, for whoever wants to see that a result does not hang on one kernel."""
    if not on:
        yield
        return
    former = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(former)


def load_onto(
    folder: Path, dtype: torch.dtype, device_map: DeviceMap, *, offload_folder: Path | None = None
) -> CausalLM:
    """Load a model as it is spread; `offload_folder` is for parts that lie on "disk"."""
    from transformers import AutoModelForCausalLM  # takes a second: importing this file should not

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map=device_map,
        offload_folder=offload_folder,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation="sdpa",
    )
    return model.eval().requires_grad_(False)
