"""Replay a part of what a host claims, drawn after it committed to its answer, and say how far the two are apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memgrid.kinds.audit import Audit
from memgrid.kinds.part import Part
from memgrid.kinds.tolerances import Tolerances
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
    tolerances: Tolerances,
    again: bool = False,
    part: Part | None = None,
) -> Audit:
    """Replay what `draw` picks of a unit's answer, or a `part` of it, in float32 on the CPU, the arbiter's class.

    `inputs` and `files` are by the names the unit uses, `compute_dtype` is what the host says it computed in: it
    decides how far honest answers may lie apart. With `again` the same part is computed in another way (attention
    without fused kernels, other pieces): a fault that is no accident of one kernel shows in both. Numbers that lie
    too far apart are the audit's to tell (`Audit.zone`); RefusedError is for files that have not the unit's form.
    """
    given: dict[str, Any] = {
        "model_folder": model_folder,
        "inputs": inputs,
        "files": files,
        "compute_dtype": compute_dtype,
        "draw": draw,
        "tolerances": tolerances,
        "again": again,
        "part": part,
    }
    # Each replay brings torch code of its own: only the one that is needed is imported.
    match spec:
        case StudySpec():
            from memgrid.distill.study_replay import audit_study

            return audit_study(spec, **given)
        case TrainSpec():
            from memgrid.distill.train_replay import audit_train

            return audit_train(spec, **given)
        case EvaluateSpec():
            from memgrid.distill.evaluate_replay import audit_evaluate

            return audit_evaluate(spec, **given)
        case PrefillSpec():
            from memgrid.distill.prefill_replay import audit_prefill

            return audit_prefill(spec, **given)
