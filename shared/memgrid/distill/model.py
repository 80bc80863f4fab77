"""Load a frozen causal language model from a folder; the last one stays loaded.

Knows safetensors and transformers; knows nothing of units.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
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

_lock = threading.Lock()
_last: tuple[tuple[Path, torch.dtype, torch.device], CausalLM] | None = None


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> CausalLM:
    """The model with its head, in evaluation mode and with frozen weights; no code from the folder ever runs.

    `dtype` is given at loading, not by `.to(dtype)` later: that would round RoPE's inverse frequencies too.
    A process holds one model: asking for another lets go of the former first, for both may not fit.
    """
    global _last
    wanted = (folder.resolve(), dtype, device)
    with _lock:
        if _last is None or _last[0] != wanted:
            _last = None
            _last = (wanted, _load(folder, dtype, device))
        return _last[1]


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


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> CausalLM:
    from transformers import AutoModelForCausalLM  # takes a second: importing this file should not

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation="sdpa",
    )
    return model.eval().requires_grad_(False)
