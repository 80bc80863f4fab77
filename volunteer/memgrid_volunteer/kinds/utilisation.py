"""How much of what a device can do a unit made use of: model FLOP utilisation (PaLM, arXiv 2204.02311, section 4.1).

The unit's floating-point operations are those its kind counts, so recomputing and padding earn nothing; what the
device can do is measured with a product of two square matrices, once for each dtype.
"""

from __future__ import annotations

from time import perf_counter

import torch

from memgrid.distill.model import load_model
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.errors import InvalidError
from memgrid.kinds.registry import kind_of
from memgrid.specs import parse_spec
from memgrid.units import ComputeDtype
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.numerics import TORCH_DTYPE, Device

_SIZE = {"cuda": 4096, "mps": 2048}
_CPU_SIZE = 1024
_REPEATED = 4


class Utilisation:
    """Of one device; what it can do is measured when it is first asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._peaks: dict[ComputeDtype, float] = {}

    def of(self, job: Job, compute_dtype: ComputeDtype, computed_s: float) -> float | None:
        """The share, None when the model's operations can't be counted; the model must still be loaded."""
        if computed_s <= 0:
            return None
        spec = parse_spec((job.unit_dir / "spec.json").read_bytes())
        try:
            model = load_model(
                job.model_dir, TORCH_DTYPE[compute_dtype], self._device.torch_device, beside=self._device.beside
            )
            flops = kind_of(spec).flops(spec, geometry_of_model(model))
        except InvalidError:
            return None
        devices = 1 + len(self._device.beside)
        return flops / computed_s / devices / self._peak_flops_per_s(compute_dtype)

    def _peak_flops_per_s(self, compute_dtype: ComputeDtype) -> float:
        if compute_dtype not in self._peaks:
            self._peaks[compute_dtype] = peak_flops_per_s(self._device, TORCH_DTYPE[compute_dtype])
        return self._peaks[compute_dtype]


def peak_flops_per_s(device: Device, dtype: torch.dtype) -> float:
    """The fastest of a few products, the first of which only warms up."""
    size = _SIZE.get(device.facts.kind, _CPU_SIZE)
    matrix = torch.ones(size, size, dtype=dtype, device=device.torch_device)
    fastest_s = float("inf")
    for _ in range(1 + _REPEATED):
        began_s = perf_counter()
        matrix @ matrix
        device.finish()
        fastest_s = min(fastest_s, perf_counter() - began_s)
    return 2.0 * size**3 / fastest_s
