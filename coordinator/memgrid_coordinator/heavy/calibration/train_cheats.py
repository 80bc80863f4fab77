"""Ways to hand in a training that was not done, each made with the real training code; and the honest way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from memgrid.distill.batches import Batches, Row
from memgrid.distill.model import CausalLM
from memgrid.distill.state import TrainState, without_moments, write_state
from memgrid.distill.train_inputs import read_course
from memgrid.distill.training import train
from memgrid.kinds.trace import TRACE_FILE, StepTrace, trace_bytes
from memgrid.kinds.train import STATE_FILE, committed_name
from memgrid.specs import TrainSpec
from memgrid_coordinator.heavy.calibration.weights import quantised


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """A unit of training with its input files, and what cheats take instead.

    `older` is the state of some steps before its start, `other_inputs` have other conversations, `load` gives the
    model in float32.
    """

    folder: Path
    spec: TrainSpec
    start: TrainState
    older: TrainState
    inputs: Mapping[str, Path]
    other_inputs: Mapping[str, Path]
    load: Callable[[], CausalLM]

    @property
    def model(self) -> CausalLM:
        return self.load()


States = list[TrainState]
Cheat = Callable[[Unit, States], States]


def compute(
    unit: Unit, *, model: CausalLM | None = None, spec: TrainSpec | None = None, **options: Any
) -> tuple[States, tuple[StepTrace, ...]]:
    """The committed states, in order, and the trace, as an honest host computes them; or by another spec or model."""
    states: States = []
    model, spec = model or unit.model, spec or unit.spec
    course = read_course(spec, options.pop("inputs", unit.inputs), model)
    _, trace = train(
        model,
        spec,
        options.pop("start", unit.start),
        options.pop("course", course),
        on_segment=lambda state, _: states.append(state),
        **options,
    )
    return [*states[:-1], without_moments(states[-1])] if unit.spec.round else states, trace


def write_outputs(where: Path, states: States, trace: tuple[StepTrace, ...]) -> dict[str, Path]:
    """The files of an answer, by the names the unit uses."""
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
    each = _every_step(unit, unit.spec.stop_step - 1)
    return [*honest[:-1], at(each[-1], unit.spec.stop_step)]


def half_the_batch(unit: Unit, honest: States) -> States:
    return compute_as(unit, batch_rows=max(1, unit.spec.batch_rows // 2))


def stale_start(unit: Unit, honest: States) -> States:
    """From the state before the one that was asked for."""
    return compute(unit, start=at(unit.older, unit.spec.first_step))[0]


def other_data(unit: Unit, honest: States) -> States:
    return compute(unit, inputs=unit.other_inputs)[0]


def order_reversed(unit: Unit, honest: States) -> States:
    """The batches of the unit from last to first."""
    course = read_course(unit.spec, unit.inputs, unit.model)
    backwards = replace(course, batches=cast(Batches, _Backwards(course.batches, unit.spec)))
    return compute(unit, course=backwards)[0]


class _Backwards:
    def __init__(self, batches: Batches, spec: TrainSpec) -> None:
        self._batches = batches
        self._ends = spec.first_step + spec.stop_step - 1

    def step(self, step: int) -> tuple[Row, ...]:
        return self._batches.step(self._ends - step)


def other_learning_rate(unit: Unit, honest: States) -> States:
    return compute_as(unit, learning_rate=1.5 * unit.spec.learning_rate)


def noise_on_the_result(unit: Unit, honest: States) -> States:
    return [*honest[:-1], noisy(unit.start, honest[-1], 0.05)]


def copied_neighbour(unit: Unit, honest: States) -> States:
    """What another member of the round computed from its own share of the data."""
    return compute_as(unit, stream=1, streams=2)


def extrapolated(unit: Unit, honest: States) -> States:
    """Half the steps of each segment, and as far again in the same direction."""
    steps = unit.spec.stop_step - unit.spec.first_step
    halves = _every_step(unit, unit.spec.first_step + steps // 2)
    half = unit.spec.segment_steps / 2
    ends = [halves[round(half * (number + 1)) - 1] for number in range(len(honest))]

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
    return compute(unit, spec=replace(unit.spec, **changes))[0]


def _every_step(unit: Unit, stop_step: int) -> States:
    """The state after each step up to one."""
    return compute(unit, spec=replace(unit.spec, segment_steps=1), stop_step=stop_step)[0]


EVERY, LAST, FIRST = "every segment", "the last segment", "the first segment"
TRAIN_CHEATS: dict[str, tuple[Cheat, str]] = {
    "no work": (no_work, EVERY),
    "one step fewer": (one_step_fewer, LAST),
    "stale start": (stale_start, FIRST),
    "other data": (other_data, EVERY),
    "another learning rate": (other_learning_rate, EVERY),
    "noise on the result": (noise_on_the_result, LAST),
    "extrapolated": (extrapolated, EVERY),
    "poisoned last segment": (poisoned_last_segment, LAST),
    "int8 weights": (int8_weights, EVERY),
}
"""The cheats of a calibration, and which segments they touch: in the others the answer is honest."""
