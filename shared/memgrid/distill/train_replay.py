"""Replay one segment of a training between two states the host committed to.

Knows training and files; knows nothing of leases or how segments come to be drawn. Whether the files are those the
host reported, by digest, is the caller's to check: that makes the chain of states continuous.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from memgrid.distill.model import load_model, without_fused_attention
from memgrid.distill.state import Arrays, TrainState, read_state
from memgrid.distill.train_inputs import geometry_of_model, read_course
from memgrid.distill.training import train
from memgrid.errors import InvalidError
from memgrid.kinds.audit import Audit, judge
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.state_file import groups
from memgrid.kinds.tolerances import Tolerances
from memgrid.kinds.trace import TRACE_FILE, StepTrace, read_trace
from memgrid.kinds.train import STATE_FILE, committed_name, committed_step, drawn_segment, segment_files, train_flops
from memgrid.kinds.train_limits import segment_limits
from memgrid.specs import AdapterSpec, TrainSpec
from memgrid.units import ComputeDtype, ReasonCode

_LARGEST_SHARE = 0.1
_SMALLEST = 1e-30
_ROWS_AGAIN = 3


def audit_train(
    spec: TrainSpec,
    *,
    model_folder: Path,
    inputs: Mapping[str, Path],
    files: Mapping[str, Path],
    compute_dtype: ComputeDtype,
    draw: bytes,
    tolerances: Tolerances,
    again: bool = False,
    part: Part | None = None,
) -> Audit:
    """Train the drawn segment again from the state it claims to begin with, in float32 on the CPU, and compare.

    With `again`, rows are taken three at a time and without fused attention.
    """
    segment = drawn_segment(spec, draw) if part is None else part.pieces[0]
    before = _state(inputs[STATE_FILE] if segment == 0 else files[committed_name(segment)])
    after = _state(files[segment_files(spec, segment)[-1]])
    claimed_trace = _trace(files[TRACE_FILE])
    stop = committed_step(spec, segment_files(spec, segment)[-1])
    model = load_model(model_folder, torch.float32, torch.device("cpu"))
    geometry = geometry_of_model(model)
    where = f"segment {segment}, steps {before.step} to {stop}"
    cost = train_flops(spec, geometry, stop - before.step)
    course = read_course(spec, inputs, model)
    try:
        with without_fused_attention(model, again):
            replayed, trace = train(
                model, spec, before, course, stop_step=stop, compute_dtype=torch.float32,
                micro_batch=_ROWS_AGAIN if again else None,
            )  # fmt: skip
    except InvalidError as error:
        return judge(
            {}, {}, where=where, broken_rule=f"can't be trained from the state it claims: {error}", flops=cost
        )
    statistics = state_differences(before, after, replayed, spec.adapter, geometry)
    statistics["loss"] = _loss_difference(claimed_trace, trace)
    return judge(
        statistics, segment_limits(tolerances, compute_dtype, before.step - spec.cold_step), where=where, flops=cost
    )


def state_differences(
    before: TrainState, claimed: TrainState, replayed: TrainState, adapter: AdapterSpec, geometry: ModelGeometry
) -> dict[str, float]:
    """How far a claimed change is from the replayed one, relative to the replayed one.

    Over everything; over the tenth of the numbers that moved furthest, where rounding matters least and cheating
    most; over the worst part (K or V of a layer, a matrix); the lengths; and Adam's moments, unless they end here.
    """
    claims, truths = (
        _change(before.parameters, state.parameters, adapter, geometry) for state in (claimed, replayed)
    )
    claim, truth = np.concatenate(claims), np.concatenate(truths)
    count = max(1, int(len(truth) * _LARGEST_SHARE))
    largest = np.argpartition(np.abs(truth), len(truth) - count)[-count:]
    moments = {}
    if claimed.has_moments:
        # Whoever may choose them moves the next segment where he likes, and its replay would agree.
        moments = {
            "Adam m": _relative(_joined(claimed.m), _joined(replayed.m)),
            "Adam v": _relative(_joined(claimed.v), _joined(replayed.v)),
        }
    return {
        "relative L2": _relative(claim, truth),
        "relative L2 of the largest": _relative(claim[largest], truth[largest]),
        "worst part": max(_relative(one, other) for one, other in zip(claims, truths, strict=True)),
        "norm ratio": abs(_norm(claim) - _norm(truth)) / max(_norm(truth), _SMALLEST),
        **moments,
    }


Doubles = npt.NDArray[np.float64]


def _change(before: Arrays, after: Arrays, adapter: AdapterSpec, geometry: ModelGeometry) -> list[Doubles]:
    old, new = (groups(parameters, adapter, geometry) for parameters in (before, after))
    return [two.astype(np.float64) - one.astype(np.float64) for one, two in zip(old, new, strict=True)]


def _joined(group: Arrays) -> Doubles:
    return np.concatenate([group[name].reshape(-1).astype(np.float64) for name in sorted(group)])


def _relative(claim: Doubles, truth: Doubles) -> float:
    return _norm(claim - truth) / max(_norm(truth), _SMALLEST)


def _norm(values: Doubles) -> float:
    return float(np.sqrt((values * values).sum()))


def _loss_difference(claimed: tuple[StepTrace, ...], replayed: tuple[StepTrace, ...]) -> float:
    """The largest relative difference of a step's loss; infinite when a step is missing or saw other tokens."""
    by_step = {entry.step: entry for entry in claimed}
    worst = 0.0
    for entry in replayed:
        claim = by_step.get(entry.step)
        if claim is None or claim.tokens != entry.tokens:
            return float("inf")
        worst = max(worst, abs(claim.loss - entry.loss) / max(abs(entry.loss), _SMALLEST))
    return worst


def _state(path: Path) -> TrainState:
    try:
        return read_state(path)
    except InvalidError as error:
        raise RefusedError(ReasonCode.WRONG_SHAPE, str(error)) from None


def _trace(path: Path) -> tuple[StepTrace, ...]:
    try:
        return read_trace(path.read_bytes())
    except InvalidError as error:
        raise RefusedError(ReasonCode.WRONG_SHAPE, str(error)) from None
