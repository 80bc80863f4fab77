"""Replays of training: every cheat is caught in the segment it touches, and no honest way of computing is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from memgrid.digest import digest_of_file
from memgrid.distill.state import TrainState, without_moments
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.distill.train_replay import audit_train
from memgrid.distill.training import train
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.delta_sketch import DeltaSketch, delta_sketch_bytes, sketch_states
from memgrid.kinds.kind import Replica
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.kinds.train import STATE_FILE, TrainKind, committed_step, drawn_segment, output_names
from memgrid.kinds.train_limits import COLD_STEPS, segment_limits
from memgrid.specs import AdapterSpec, TrainSpec
from memgrid.units import ComputeDtype, Output, ReasonCode
from tests.models import make_tiny_model
from tests.train_cheats import CHEATS, Cheat, Unit, compute, copied_neighbour, make_unit, write_outputs
from tests.training import LORA, PREFIX, course, make_spec

ADAPTERS = pytest.mark.parametrize("adapter", [PREFIX, LORA], ids=["prefix", "lora"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def units(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Unit]:
    return {
        str(adapter.kind): make_unit(folder, tmp_path_factory.mktemp(str(adapter.kind)), adapter)
        for adapter in (PREFIX, LORA)
    }


def draw_for(spec: TrainSpec, segment: int) -> bytes:
    return next(draw for value in range(256) if drawn_segment(spec, draw := bytes([value]) * 32) == segment)


def replay(
    unit: Unit,
    files: dict[str, Path],
    segment: int,
    dtype: ComputeDtype = ComputeDtype.FLOAT32,
    *,
    again: bool = False,
) -> Audit:
    return audit_train(
        unit.spec,
        model_folder=unit.folder,
        inputs=unit.inputs,
        files=files,
        compute_dtype=dtype,
        draw=draw_for(unit.spec, segment),
        tolerances=BUILT_IN,
        again=again,
    )


@ADAPTERS
@pytest.mark.parametrize("segment", [0, 1, 3])
def test_honest_answer_passes(units: dict[str, Unit], adapter: AdapterSpec, segment: int, tmp_path: Path) -> None:
    unit = units[adapter.kind]
    audit = replay(unit, write_outputs(tmp_path, *compute(unit, micro_batch=3)), segment)
    assert set(audit.statistics.values()) == {0.0}
    assert set(audit.statistics) == set(audit.limits)
    other_way = replay(unit, write_outputs(tmp_path, *compute(unit, micro_batch=3)), segment, again=True)
    assert other_way.zone is Zone.PASS
    assert max(other_way.statistics.values()) > 0, "attention without fused kernels rounds otherwise"
    assert 0 < audit.flops * 4 == TrainKind().flops(unit.spec, geometry_of_model(unit.model))


@ADAPTERS
@pytest.mark.parametrize(("cheat", "segments", "claims"), CHEATS, ids=[cheat.__name__ for cheat, *_ in CHEATS])
def test_cheat_is_caught_in_the_segments_it_touches(
    units: dict[str, Unit],
    adapter: AdapterSpec,
    cheat: Cheat,
    segments: tuple[int, ...],
    claims: tuple[ComputeDtype, ...],
    tmp_path: Path,
) -> None:
    unit = units[adapter.kind]
    honest, trace = compute(unit)
    # The trace is an honest one, perhaps bought: the states alone have to give the cheat away.
    files = write_outputs(tmp_path, cheat(unit, honest), trace)
    for segment in (segments[0], segments[-1]):
        for claim in claims:
            found = replay(unit, files, segment, claim)
            assert found.zone is Zone.FAULT
            assert f"at segment {segment}, steps {12 + 3 * segment} to" in found.in_words()


@ADAPTERS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_honest_16_bits_pass_in_their_class(
    units: dict[str, Unit], adapter: AdapterSpec, dtype: torch.dtype, tmp_path: Path
) -> None:
    unit = units[adapter.kind]
    claim = {torch.bfloat16: ComputeDtype.BFLOAT16, torch.float16: ComputeDtype.FLOAT16}[dtype]
    files = write_outputs(tmp_path, *compute(unit, compute_dtype=dtype))
    for segment in (0, 3):
        audit = replay(unit, files, segment, claim)
        assert audit.zone is Zone.PASS
        assert 0 < audit.statistics["relative L2"] < audit.limits["relative L2"]
    if dtype is torch.bfloat16:
        assert replay(unit, files, 0, ComputeDtype.FLOAT32).zone is not Zone.PASS


@pytest.fixture(scope="module")
def rounds(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Unit]:
    """Members of a second round."""
    return {
        str(adapter.kind): make_unit(folder, tmp_path_factory.mktemp(f"round-{adapter.kind}"), adapter, round_=2)
        for adapter in (PREFIX, LORA)
    }


@ADAPTERS
def test_member_of_a_round_passes_with_parameters_at_both_ends(
    rounds: dict[str, Unit], adapter: AdapterSpec, tmp_path: Path
) -> None:
    unit = rounds[adapter.kind]
    geometry = geometry_of_model(unit.model)
    files = write_outputs(tmp_path, *compute(unit, micro_batch=3))
    sketch = sketch_states(unit.inputs[STATE_FILE], files[STATE_FILE], adapter, geometry, unit.spec.key)
    TrainKind().check_files(unit.spec, files, unit.inputs, delta_sketch_bytes(sketch), geometry)
    audits = [replay(unit, files, segment) for segment in range(4)]
    assert {value for audit in audits for value in audit.statistics.values()} == {0.0}
    assert all(set(audit.statistics) == set(audit.limits) for audit in audits)
    assert ["Adam m" in audit.statistics for audit in audits] == [True, True, True, False]
    # Steps 12 to 21 of training are the first ten of this round.
    assert [audit.limits["relative L2"] for audit in audits] == [0.016] * 4


def test_a_round_warms_up_after_ten_steps() -> None:
    spec = make_spec(first_step=32, stop_step=64, total_steps=64, round=2)
    starts = [spec.first_step, *(committed_step(spec, name) for name in output_names(spec)[2:])]
    limits = [
        segment_limits(BUILT_IN, ComputeDtype.FLOAT32, start - spec.cold_step)["relative L2"] for start in starts
    ]
    assert limits == [0.016] * 4 + [2e-3] * 7


@ADAPTERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_moments_that_a_member_made_up_are_seen_where_they_are_handed_on(
    rounds: dict[str, Unit], adapter: AdapterSpec, dtype: torch.dtype, tmp_path: Path
) -> None:
    """From made-up moments the rest is computed honestly: where it goes, it goes by the member's will."""
    unit = rounds[adapter.kind]
    honest, trace = compute(unit)
    forged = replace(honest[0], m={name: value - 0.3 * abs(value).max() for name, value in honest[0].m.items()})
    rest: list[TrainState] = []
    train(
        unit.model,
        unit.spec,
        forged,
        course(unit.spec),
        trace=trace[:3],
        on_segment=lambda state, _: rest.append(state),
    )
    files = write_outputs(tmp_path, [forged, *rest[:-1], without_moments(rest[-1])], trace)
    claim = ComputeDtype.FLOAT32 if dtype is torch.float32 else ComputeDtype.BFLOAT16
    found = replay(unit, files, 0, claim)
    assert found.zone is not Zone.PASS
    assert "Adam m" in found.in_words()


@pytest.mark.parametrize("number", [1, 3], ids=["on the way", "result"])
def test_moments_belong_into_what_is_committed_on_the_way_and_nowhere_else(
    rounds: dict[str, Unit], number: int, tmp_path: Path
) -> None:
    unit = rounds["prefix"]
    states, trace = compute(unit)
    m, v = (states[0].m, states[0].v) if number == 3 else ({}, {})
    states[number] = replace(states[number], m=m, v=v)
    files = write_outputs(tmp_path, states, trace)
    with pytest.raises(RefusedError) as refused:
        TrainKind().check_files(unit.spec, files, unit.inputs, b"", geometry_of_model(unit.model))
    assert refused.value.reason.code is ReasonCode.WRONG_SHAPE


@ADAPTERS
def test_cold_adam_is_given_more_room(units: dict[str, Unit], adapter: AdapterSpec, tmp_path: Path) -> None:
    unit = make_unit(units[adapter.kind].folder, tmp_path, adapter, warm_steps=0)
    files = write_outputs(tmp_path / "out", *compute(unit, compute_dtype=torch.bfloat16))
    first, last = (replay(unit, files, segment, ComputeDtype.BFLOAT16) for segment in (0, 3))
    assert first.statistics["relative L2"] > 2 * last.statistics["relative L2"]
    assert (
        first.limits["relative L2"] > 4 * segment_limits(BUILT_IN, ComputeDtype.BFLOAT16, COLD_STEPS)["relative L2"]
    )


def test_last_segment_is_drawn_twice_as_often(units: dict[str, Unit]) -> None:
    spec = units["prefix"].spec
    draws = [drawn_segment(spec, hashlib.sha256(bytes([n % 256, n // 256])).digest()) for n in range(2000)]
    counts = [draws.count(segment) for segment in range(4)]
    assert all(320 < count < 480 for count in counts[:3]) and 720 < counts[3] < 880


@ADAPTERS
def test_sketch_is_that_of_the_files_and_tells_members_apart(
    units: dict[str, Unit], adapter: AdapterSpec, tmp_path: Path
) -> None:
    unit, kind = units[adapter.kind], TrainKind()
    geometry = geometry_of_model(unit.model)
    honest = write_outputs(tmp_path / "honest", *compute(unit))
    half = write_outputs(tmp_path / "half", *compute(unit, compute_dtype=torch.bfloat16))
    other = write_outputs(tmp_path / "other", copied_neighbour(unit, []), compute(unit)[1])
    sketches = {
        name: delta_sketch_bytes(
            sketch_states(unit.inputs[STATE_FILE], files[STATE_FILE], adapter, geometry, unit.spec.key)
        )
        for name, files in [("honest", honest), ("half", half), ("other", other)]
    }
    kind.check_files(unit.spec, honest, unit.inputs, sketches["honest"], geometry)
    with pytest.raises(RefusedError, match="do not have the reported sketch"):
        kind.check_files(unit.spec, honest, unit.inputs, sketches["half"], geometry)

    def compared(one: str, two: str, dtype: ComputeDtype) -> str | None:
        claims = (Replica(sketch=sketches[name], compute_dtype=dtype) for name in (one, two))
        return kind.compare(unit.spec, *claims, geometry, BUILT_IN).exceeded

    assert compared("honest", "honest", ComputeDtype.FLOAT32) is None
    assert compared("honest", "half", ComputeDtype.BFLOAT16) is None
    assert "relative L2" in str(compared("honest", "other", ComputeDtype.BFLOAT16))


def test_claims_of_another_form_are_turned_down_at_the_door(units: dict[str, Unit], tmp_path: Path) -> None:
    unit, kind = units["prefix"], TrainKind()
    geometry = geometry_of_model(unit.model)
    files = write_outputs(tmp_path, *compute(unit))
    outputs = [
        Output(name=name, digest=digest_of_file(files[name]), size_bytes=files[name].stat().st_size)
        for name in output_names(unit.spec)
    ]
    sketch = delta_sketch_bytes(
        sketch_states(unit.inputs[STATE_FILE], files[STATE_FILE], PREFIX, geometry, unit.spec.key)
    )
    kind.check_claim(unit.spec, outputs, sketch, geometry)
    assert [file.name for file in kind.wanted(unit.spec, outputs, draw_for(unit.spec, 1))] == [
        "state.safetensors", "trace.json", "state-0001.safetensors", "state-0002.safetensors",
    ]  # fmt: skip
    huge = [replace(outputs[0], size_bytes=10**9), *outputs[1:]]
    for spoiled, brought, code in [
        (outputs[:-1], sketch, ReasonCode.WRONG_OUTPUTS),
        (huge, sketch, ReasonCode.WRONG_OUTPUTS),
        (outputs, b"", ReasonCode.BAD_SKETCH),
        (outputs, delta_sketch_bytes(DeltaSketch(parts=np.full((4, 7), np.nan, "f4"))), ReasonCode.NOT_FINITE),
    ]:
        with pytest.raises(RefusedError) as refused:
            kind.check_claim(unit.spec, spoiled, brought, geometry)
        assert refused.value.reason.code is code


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda state: replace(state, step=11), ReasonCode.WRONG_OUTPUTS),
        (lambda state: replace(state, m={}, v={}), ReasonCode.WRONG_SHAPE),
        (
            lambda state: replace(state, parameters={"prompt_embeddings": np.ones((6, 8), "f4")}),
            ReasonCode.WRONG_SHAPE,
        ),
        (lambda state: replace(state, v={name: -value for name, value in state.v.items()}), ReasonCode.NOT_FINITE),
        (lambda state: replace(state, m={name: value / 0 for name, value in state.m.items()}), ReasonCode.NOT_FINITE),
        (
            lambda state: replace(state, parameters={name: value + 1 for name, value in state.parameters.items()}),
            ReasonCode.WRONG_OUTPUTS,
        ),
    ],
    ids=["step", "no moments", "shape", "negative square", "not finite", "sink"],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_states_of_another_form_are_turned_down(
    units: dict[str, Unit], tmp_path: Path, spoil: Callable[[TrainState], TrainState], code: ReasonCode
) -> None:
    unit, kind = units["prefix"], TrainKind()
    states, trace = compute(unit)
    files = write_outputs(tmp_path, [*states[:-1], spoil(states[-1])], trace)
    with pytest.raises(RefusedError) as refused:
        kind.check_files(unit.spec, files, unit.inputs, b"", geometry_of_model(unit.model))
    assert refused.value.reason.code is code
