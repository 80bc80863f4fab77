"""Ways to hand in a training that was not done, each made with the real training code; and the honest way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memgrid.distill.model import load_model
from memgrid.distill.state import TrainState, without_moments, write_state
from memgrid.distill.train_inputs import read_course
from memgrid.distill.training import train
from memgrid.kinds.trace import TRACE_FILE, StepTrace, trace_bytes
from memgrid.kinds.train import STATE_FILE, committed_name
from memgrid.specs import AdapterSpec, TrainSpec
from memgrid.units import ComputeDtype
from tests.training import course, make_spec, random_shard, random_start, write_inputs

WARM_STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """A unit of 12 steps from a warm state, or of a round; its input files, and the model."""

    folder: Path
    spec: TrainSpec
    start: TrainState
    inputs: dict[str, Path]

    @property
    def model(self) -> Any:
        return load_model(self.folder, torch.float32, torch.device("cpu"))


def make_unit(
    folder: Path, where: Path, adapter: AdapterSpec, *, warm_steps: int = WARM_STEPS, round_: int = 0
) -> Unit:
    model = load_model(folder, torch.float32, torch.device("cpu"))
    warming = make_spec(adapter, stop_step=warm_steps)
    start, _ = train(model, warming, random_start(adapter, model), course(warming))
    spec = make_spec(adapter, first_step=warm_steps, stop_step=warm_steps + 12, round=round_)
    if round_:
        start = without_moments(start)
    spec, inputs = write_inputs(where / "in", spec, start, [random_shard(1), random_shard(2)])
    return Unit(folder=folder, spec=spec, start=start, inputs=inputs)


States = list[TrainState]
Cheat = Callable[[Unit, States], States]


def compute(unit: Unit, *, model: Any = None, **options: Any) -> tuple[States, tuple[StepTrace, ...]]:
    """The committed states, in order, and the trace, as an honest host computes them."""
    states: States = []
    model = unit.model if model is None else model
    _, trace = train(
        model,
        unit.spec,
        unit.start,
        read_course(unit.spec, unit.inputs, model),
        on_segment=lambda state, _: states.append(state),
        **options,
    )
    return [*states[:-1], without_moments(states[-1])] if unit.spec.round else states, trace


def write_outputs(where: Path, states: States, trace: tuple[StepTrace, ...]) -> dict[str, Path]:
    where.mkdir(parents=True, exist_ok=True)
    names = [*(committed_name(number) for number in range(1, len(states))), STATE_FILE]
    for name, state in zip(names, states, strict=True):
        write_state(where / name, state)
    (where / TRACE_FILE).write_bytes(trace_bytes(trace))
    return {name: where / name for name in [*names, TRACE_FILE]}


def at(state: TrainState, step: int) -> TrainState:
    return replace(state, step=step)


def with_parameters(state: TrainState, change: Callable[[str, Any], Any]) -> TrainState:
    """A frozen token is left alone: its change would be seen by form."""
    changed = {name: change(name, value).astype(np.float32) for name, value in state.parameters.items()}
    if "prompt_embeddings" in changed:
        changed["prompt_embeddings"][0] = state.parameters["prompt_embeddings"][0]
    return replace(state, parameters=changed)


def noisy(before: TrainState, after: TrainState, share: float) -> TrainState:
    """Noise of that share of what was learnt since `before`, in every parameter."""
    draw = np.random.default_rng(7)

    def change(name: str, value: Any) -> Any:
        moved = np.linalg.norm(value - before.parameters[name])
        noise = draw.normal(size=value.shape)
        return value + share * moved * noise / np.linalg.norm(noise)

    return with_parameters(after, change)


def no_work(unit: Unit, honest: States) -> States:
    return [at(unit.start, state.step) for state in honest]


def one_step_fewer(unit: Unit, honest: States) -> States:
    """The last step is left out."""
    end: list[TrainState] = []
    spec = replace(unit.spec, segment_steps=1)
    train(unit.model, spec, unit.start, course(spec), stop_step=23, on_segment=lambda state, _: end.append(state))
    return [*honest[:-1], at(end[-1], unit.spec.stop_step)]


def half_the_batch(unit: Unit, honest: States) -> States:
    return compute_as(unit, batch_rows=unit.spec.batch_rows // 2)


def stale_start(unit: Unit, honest: States) -> States:
    """From the state before the one that was asked for."""
    model = unit.model
    warming = make_spec(unit.spec.adapter, stop_step=WARM_STEPS // 2)
    old, _ = train(model, warming, random_start(unit.spec.adapter, model), course(warming))
    states: States = []
    train(
        model,
        unit.spec,
        at(old, WARM_STEPS),
        course(unit.spec),
        on_segment=lambda state, _: states.append(state),
    )
    return states


def other_data(unit: Unit, honest: States) -> States:
    states: States = []
    train(
        unit.model, unit.spec, unit.start, course(unit.spec, 3, 4), on_segment=lambda state, _: states.append(state)
    )
    return states


def order_reversed(unit: Unit, honest: States) -> States:
    """The batches of the unit from last to first."""
    backwards = course(unit.spec)
    steps = [backwards.batches.step(step) for step in range(unit.spec.stop_step)]
    steps[WARM_STEPS:] = reversed(steps[WARM_STEPS:])
    backwards.batches._steps[:] = steps
    states: States = []
    train(unit.model, unit.spec, unit.start, backwards, on_segment=lambda state, _: states.append(state))
    return states


def other_learning_rate(unit: Unit, honest: States) -> States:
    return compute_as(unit, learning_rate=1.5 * unit.spec.learning_rate)


def noise_on_the_result(unit: Unit, honest: States) -> States:
    return [*honest[:-1], noisy(unit.start, honest[-1], 0.05)]


def copied_neighbour(unit: Unit, honest: States) -> States:
    """What another member of the round computed from its own share of the data."""
    return compute_as(unit, stream=1, streams=2)


def extrapolated(unit: Unit, honest: States) -> States:
    """Half the steps of each segment, and as far again in the same direction."""
    halves: States = []
    spec = replace(unit.spec, segment_steps=1)
    train(unit.model, spec, unit.start, course(spec), stop_step=18, on_segment=lambda state, _: halves.append(state))
    ends = [halves[round(1.5 * number) - 1] for number in range(1, 5)]

    def doubled(end: TrainState, step: int) -> TrainState:
        start = unit.start.parameters
        return at(with_parameters(end, lambda name, value: 2 * value - start[name]), step)

    return [doubled(end, state.step) for end, state in zip(ends, honest, strict=True)]


def poisoned_last_segment(unit: Unit, honest: States) -> States:
    return [*honest[:-1], noisy(honest[-2], honest[-1], 0.5)]


def int8_weights(unit: Unit, honest: States) -> States:
    return compute(unit, model=quantised(unit.folder))[0]


def compute_as(unit: Unit, **changes: Any) -> States:
    """The unit's work with another spec than the one it was given."""
    spec = replace(unit.spec, **changes)
    states: States = []
    train(unit.model, spec, unit.start, course(spec), on_segment=lambda state, _: states.append(state))
    return states


def quantised(folder: Path) -> Any:
    """The model with every matrix rounded to 8 bits an output channel."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                scale = parameter.abs().amax(dim=1, keepdim=True) / 127
                parameter.copy_((parameter / scale).round() * scale)
    return model.eval().requires_grad_(False)


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
