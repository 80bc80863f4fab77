"""What all kinds of units need to begin and to end: the loaded model, checked inputs, the facts of the work.

A worker holds one model, whatever kind of unit asks for it (`memgrid.distill.model`): two might not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from memgrid.digest import digest_of_file
from memgrid.distill.model import load_model
from memgrid.errors import InvalidError
from memgrid.kinds.registry import kind_of
from memgrid.specs import Spec
from memgrid.units import ComputeDtype, WorkFacts
from memgrid_volunteer.numerics import TORCH_DTYPE, Device, torch_version

T = TypeVar("T")


def load_causal(folder: Path, compute_dtype: ComputeDtype, device: Device) -> Any:
    """The model with its head; raises InvalidError when the device is several that only prefill knows to use."""
    if device.beside:
        raise InvalidError(f"device {device.device_id}: only prefill units are spread over several devices")
    return load_model(folder, TORCH_DTYPE[compute_dtype], device.torch_device)


def load_base(folder: Path, dtype: torch.dtype, device: Device) -> Any:
    """The model without its head, which caches are computed with."""
    return load_model(folder, dtype, device.torch_device, beside=device.beside).base_model


def checked_inputs(spec: Spec, unit_dir: Path) -> dict[str, Path]:
    """The unit's files by name; raises InvalidError unless each is the one that the spec names."""
    inputs = {file.name: unit_dir / file.name for file in kind_of(spec).inputs(spec)}
    for file in kind_of(spec).inputs(spec):
        if digest_of_file(inputs[file.name]) != file.digest:
            raise InvalidError(f"{file.name} is not what the unit's spec names")
    return inputs


class Fitted:
    """Remembers how many fitted at once, of each model: the next unit need not run out of memory again to know."""

    def __init__(self) -> None:
        self._at_once: dict[str, int] = {}

    def run(self, model: str, compute: Callable[[int], T], batch: int, *, least: int = 1) -> T:
        """As `as_many_as_fit`, from what fitted the last time on."""

        def noted(size: int) -> T:
            result = compute(size)
            if size < batch:
                self._at_once[model] = size
            return result

        return as_many_as_fit(noted, min(batch, self._at_once.get(model, batch)), least=least)


def as_many_as_fit(compute: Callable[[int], T], batch: int, *, least: int = 1) -> T:
    """The result of computing `batch` at once, or half as many each time memory runs out.

    Raises MemoryError when not even `least` fit.
    """
    from accelerate.utils import find_executable_batch_size  # takes a second: the worker greets its supervisor first

    size = batch

    def tried(batch_size: int) -> T:
        nonlocal size
        size = batch_size
        return compute(batch_size)

    try:
        repeated = find_executable_batch_size(
            tried, starting_batch_size=batch, reduce_batch_size_fn=lambda: size // 2 if size // 2 >= least else 0
        )
        result: T = repeated()
    except RuntimeError as error:
        if "No executable batch size found" not in str(error):
            raise
        raise MemoryError(f"not even a batch of {least} fits into memory") from None
    return result


def facts_of(device: Device, compute_dtype: ComputeDtype, *, tokens: int, compute_s: float) -> WorkFacts:
    return WorkFacts(
        tokens=tokens,
        compute_s=compute_s,
        device_kind=device.facts.kind,
        numerics_class=device.facts.numerics_class,
        compute_dtype=compute_dtype,
        torch_version=torch_version(),
    )
