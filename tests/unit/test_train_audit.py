"""Replays of training: every cheat is caught in the segment it touches, and no honest way of computing is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from memgrid.distill.audit import Audit
from memgrid.distill.model import load_model
from memgrid.distill.state import TrainState, write_state
from memgrid.distill.train_inputs import geometry_of_model, read_course
from memgrid.distill.train_replay import audit_train
from memgrid.distill.training import train
from memgrid.kinds.trace import TRACE_FILE, StepTrace, trace_bytes
from memgrid.kinds.train import STATE_FILE, TrainKind, committed_name, drawn_segment
from memgrid.specs import AdapterSpec, TrainSpec
from memgrid.units import ComputeDtype
from tests.models import make_tiny_model
from tests.training import LORA, PREFIX, course, make_spec, random_shard, random_start, write_inputs

ADAPTERS = pytest.mark.parametrize("adapter", [PREFIX, LORA], ids=["prefix", "lora"])
WARM_STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """A unit of 12 steps from a warm state, its input files, and the model."""

    folder: Path
    spec: TrainSpec
    start: TrainState
    inputs: dict[str, Path]

    @property
    def model(self) -> Any:
        return load_model(self.folder, torch.float32, torch.device("cpu"))


def make_unit(folder: Path, where: Path, adapter: AdapterSpec) -> Unit:
    model = load_model(folder, torch.float32, torch.device("cpu"))
    warming = make_spec(adapter, stop_step=WARM_STEPS)
    start, _ = train(model, warming, random_start(adapter, model), course(warming))
    spec = make_spec(adapter, first_step=WARM_STEPS, stop_step=WARM_STEPS + 12)
    spec, inputs = write_inputs(where / "in", spec, start, [random_shard(1), random_shard(2)])
    return Unit(folder=folder, spec=spec, start=start, inputs=inputs)


@pytest.fixture(scope="module")
def units(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Unit]:
    return {
        str(adapter.kind): make_unit(folder, tmp_path_factory.mktemp(str(adapter.kind)), adapter)
        for adapter in (PREFIX, LORA)
    }


States = list[TrainState]


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
    return states, trace


def write_outputs(where: Path, states: States, trace: tuple[StepTrace, ...]) -> dict[str, Path]:
    where.mkdir(parents=True, exist_ok=True)
    names = [*(committed_name(number) for number in range(1, len(states))), STATE_FILE]
    for name, state in zip(names, states, strict=True):
        write_state(where / name, state)
    (where / TRACE_FILE).write_bytes(trace_bytes(trace))
    return {name: where / name for name in [*names, TRACE_FILE]}


def draw_for(spec: TrainSpec, segment: int) -> bytes:
    return next(draw for value in range(256) if drawn_segment(spec, draw := bytes([value]) * 32) == segment)


def replay(unit: Unit, files: dict[str, Path], segment: int, dtype: ComputeDtype = ComputeDtype.FLOAT32) -> Audit:
    return audit_train(
        unit.spec,
        model_folder=unit.folder,
        inputs=unit.inputs,
        files=files,
        compute_dtype=dtype,
        draw=draw_for(unit.spec, segment),
    )


@ADAPTERS
@pytest.mark.parametrize("segment", [0, 1, 3])
def test_honest_answer_passes(units: dict[str, Unit], adapter: AdapterSpec, segment: int, tmp_path: Path) -> None:
    unit = units[adapter.kind]
    audit = replay(unit, write_outputs(tmp_path, *compute(unit, micro_batch=3)), segment)
    assert set(audit.statistics.values()) == {0.0}
    assert set(audit.statistics) == set(audit.limits)
    assert 0 < audit.flops * 4 == TrainKind().flops(unit.spec, geometry_of_model(unit.model))
