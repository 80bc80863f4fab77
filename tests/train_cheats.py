"""A small unit of training for tests, and which of the calibration's cheats are caught in it, and where."""

from __future__ import annotations

from pathlib import Path

import torch

from memgrid.distill.model import load_model
from memgrid.distill.state import without_moments
from memgrid.distill.training import train
from memgrid.specs import AdapterSpec
from memgrid.units import ComputeDtype
from memgrid_coordinator.heavy.calibration.train_cheats import (
    Cheat,
    Unit,
    compute,
    copied_neighbour,
    extrapolated,
    half_the_batch,
    int8_weights,
    no_work,
    noise_on_the_result,
    one_step_fewer,
    order_reversed,
    other_data,
    other_learning_rate,
    poisoned_last_segment,
    stale_start,
    write_outputs,
)
from tests.training import course, make_spec, random_shard, random_start, write_inputs

__all__ = ["CHEATS", "Cheat", "Unit", "compute", "copied_neighbour", "make_unit", "write_outputs"]
WARM_STEPS = 12


def make_unit(
    folder: Path, where: Path, adapter: AdapterSpec, *, warm_steps: int = WARM_STEPS, round_: int = 0
) -> Unit:
    """A unit of 12 steps from a warm state, or of a round; its input files, and the model."""
    model = load_model(folder, torch.float32, torch.device("cpu"))
    warming = make_spec(adapter, stop_step=max(warm_steps, 1))
    cold = random_start(adapter, model)
    start, _ = train(model, warming, cold, course(warming), stop_step=warm_steps)
    older, _ = train(model, make_spec(adapter, stop_step=6), cold, course(make_spec(adapter, stop_step=6)))
    spec = make_spec(adapter, first_step=warm_steps, stop_step=warm_steps + 12, round=round_)
    if round_:
        start = without_moments(start)
    _, others = write_inputs(where / "other", spec, start, [random_shard(3), random_shard(4)])
    spec, inputs = write_inputs(where / "in", spec, start, [random_shard(1), random_shard(2)])
    return Unit(
        folder=folder,
        spec=spec,
        start=start,
        older=older,
        inputs=inputs,
        other_inputs=others,
        load=lambda: load_model(folder, torch.float32, torch.device("cpu")),
    )


EVERY, LAST, FIRST = (0, 1, 2, 3), (3,), (0,)
ANY_CLAIM = (ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16)
CHEATS: list[tuple[Cheat, tuple[int, ...], tuple[ComputeDtype, ...]]] = [
    (no_work, EVERY, ANY_CLAIM),
    (one_step_fewer, LAST, ANY_CLAIM),
    (half_the_batch, EVERY, ANY_CLAIM),
    (stale_start, FIRST, ANY_CLAIM),
    (other_data, EVERY, ANY_CLAIM),
    (order_reversed, EVERY, ANY_CLAIM),
    (other_learning_rate, EVERY, ANY_CLAIM),
    (noise_on_the_result, LAST, ANY_CLAIM),
    (copied_neighbour, EVERY, ANY_CLAIM),
    (extrapolated, EVERY, ANY_CLAIM),
    (poisoned_last_segment, LAST, ANY_CLAIM),
    # Two layers hardly add up what 8 bits lose; in bfloat16 it takes the depth of a real model to tell.
    (int8_weights, EVERY, (ComputeDtype.FLOAT32,)),
]
"""The cheat, the segments it touches, and the dtypes it is caught under, whichever of them it claims."""
