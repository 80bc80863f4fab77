"""Load a model to talk to: weights as safetensors, no code of its own, on this machine's best device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A model with its tokenizer, and what it is called here."""

    name: str
    model: Any
    tokenizer: Any


def load(model: str, *, dtype: ComputeDtype = ComputeDtype.AUTO, device: str | None = None) -> Loaded:
    """The model of a folder, or of a name that transformers knows; raises InvalidError when there is none.

    AUTO computes in bfloat16 on a GPU that has it and in float32 elsewhere. `device` is a name of torch's, such as
    `cuda:0`; left out, the first GPU if there is one.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ModuleNotFoundError as error:
        raise InvalidError(f"talking to a model needs {error.name}: pip install 'memgrid[serve]'") from None
    disable_progress_bar()  # it would draw over our own lines
    place = _device(device)
    is_folder = Path(model).is_dir()
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": is_folder}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        network = AutoModelForCausalLM.from_pretrained(
            model, dtype=_dtype(dtype, place), device_map={"": place}, use_safetensors=True, **options
        )
    except (OSError, ValueError, ImportError) as error:
        line = " ".join(str(error).split())
        raise InvalidError(f"--model {model}: expected a model's folder or name: {line[:200]}") from None
    assert isinstance(place, torch.device)
    name = Path(model).resolve().name if is_folder else model.rpartition("/")[2]
    # `+` stands between model and cubes where people name both.
    return Loaded(name=name.replace("+", "-"), model=network.eval().requires_grad_(False), tokenizer=tokenizer)


def _device(wanted: str | None) -> torch.device:
    import torch

    try:
        return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise InvalidError(f"--device: expected a device such as cpu or cuda:0, found {wanted!r}") from None


def _dtype(wanted: ComputeDtype, device: torch.device) -> torch.dtype:
    import torch

    if wanted is ComputeDtype.AUTO:
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype: torch.dtype = getattr(torch, wanted.value)
    return dtype
