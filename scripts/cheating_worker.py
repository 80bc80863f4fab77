"""A volunteer's worker that cheats: it loads the true model, then rounds its weights to eight bits.

For the demonstration only. The text it computes with is right, the files it was given are right, and its answers
look like the model's; the grid has to notice by their numbers alone.
"""

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
    """The model as a cheap quantised runtime would have it."""
    model = load_base(folder, dtype, device)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded_to_eight_bits(module.weight.data)
    return model


def rounded_to_eight_bits(weights: torch.Tensor) -> torch.Tensor:
    """Each row [out, in] on a grid of 255 steps up to its largest weight."""
    step = weights.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(weights / step) * step


if __name__ == "__main__":
    main({"prefill": Prefill(find_devices()[0], SystemClock(), load=load_rounded).run})
