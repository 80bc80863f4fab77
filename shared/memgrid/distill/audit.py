"""Replay a part of what a host claims, drawn after it committed to its answer, and say how far the two are apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memgrid.distill.judgement import Audit
from memgrid.errors import InvalidError
from memgrid.specs import EvaluateSpec, PrefillSpec, Spec, StudySpec, TrainSpec
from memgrid.units import ComputeDtype


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
