"""Replay a part of what a host claims, drawn after it committed to its answer, and say how far the two are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memgrid.errors import InvalidError
from memgrid.kinds.refusal import RefusedError
from memgrid.specs import EvaluateSpec, PrefillSpec, Spec, StudySpec, TrainSpec
from memgrid.units import ComputeDtype, ReasonCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A replay that agreed: what was found, what would have been allowed, and what the replay cost.

    `statistics` and `limits` have the same names; `flops` are the checker's, to set against the unit's own.
    """

    statistics: dict[str, float]
    limits: dict[str, float]
    flops: int


def audit(
    spec: Spec,
    *,
    model_folder: Path,
    inputs: Mapping[str, Path],
    files: Mapping[str, Path],
    compute_dtype: ComputeDtype,
    draw: bytes,
) -> Audit:
    """Replay what `draw` picks of a unit's answer in float32 on the CPU, the arbiter's class.

    `inputs` and `files` are by the names the unit uses, `compute_dtype` is what the host says it computed in: it
    decides how far honest answers may lie apart. Raises RefusedError (REPLAY_DIFFERS and what was found) when they
    lie further apart than that.
    """
    # Each replay brings torch code of its own: only the one that is needed is imported.
    match spec:
        case StudySpec():
            from memgrid.distill.study_replay import audit_study

            return audit_study(
                spec,
                model_folder=model_folder,
                inputs=inputs,
                files=files,
                compute_dtype=compute_dtype,
                draw=draw,
            )
        case TrainSpec():
            from memgrid.distill.train_replay import audit_train

            return audit_train(
                spec,
                model_folder=model_folder,
                inputs=inputs,
                files=files,
                compute_dtype=compute_dtype,
                draw=draw,
            )
        case EvaluateSpec():
            from memgrid.distill.evaluate_replay import audit_evaluate

            return audit_evaluate(
                spec,
                model_folder=model_folder,
                inputs=inputs,
                files=files,
                compute_dtype=compute_dtype,
                draw=draw,
            )
        case PrefillSpec():
            raise InvalidError("prefill units are compared by sketch, not replayed")


def judge(statistics: dict[str, float], limits: dict[str, float], where: str, flops: int) -> Audit:
    """An audit, or RefusedError naming the first statistic above its limit; NaN is above any.

    >>> judge({"relative L2": 0.54}, {"relative L2": 0.01}, "segment 2", 0)
    Traceback (most recent call last):
    ...
    memgrid.kinds.refusal.RefusedError: segment 2: relative L2 5.4e-01, allowed 1.0e-02
    """
    for name, value in statistics.items():
        if not value <= limits[name]:
            raise RefusedError(ReasonCode.REPLAY_DIFFERS, f"{where}: {name} {value:.1e}, allowed {limits[name]:.1e}")
    return Audit(statistics=statistics, limits=limits, flops=flops)
