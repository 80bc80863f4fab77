"""A worker that computes with slightly wrong weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from memgrid.clock import SystemClock
from memgrid_volunteer.kinds.models import load_base
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.numerics import Device, find_devices
from memgrid_volunteer.worker import main


def load_rounded(folder: Path, dtype: torch.dtype, device: Device) -> Any:
    """Every matrix on a coarse grid, as a four-bit runtime would have it."""
    model = load_base(folder, dtype, device)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            step = module.weight.data.abs().amax(dim=1, keepdim=True) / 7
            module.weight.data = torch.round(module.weight.data / step) * step
    return model


if __name__ == "__main__":
    main({"prefill": Prefill(find_devices()[0], SystemClock(), load=load_rounded).run})
