"""Replay a part of a host's answer, drawn after it was reported; torch stays in the engine's process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memgrid.kinds.audit import Audit
from memgrid.kinds.part import Part
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import parse_spec
from memgrid.units import ComputeDtype, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOrder:
    """What to replay: the unit, the files that came, its inputs by their names, and the secret draw."""

    spec: bytes
    model_folder: Path
    files: Mapping[str, Path]
    inputs: Mapping[str, Path]
    compute_dtype: ComputeDtype
    draw: bytes
    tolerances: Tolerances
    again: bool = False
    """Whether to compute the same part in another way: that is how a fault is confirmed."""
    part: Part | None = None
    """What to compute instead of what the draw picks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of it: the audit, or in `refused` why the files have not the unit's form."""

    audit: Audit | None
    refused: Reason | None
    seconds: float


def replay(order: ReplayOrder) -> Replayed:
    """Compute a part again and compare."""
    from memgrid.distill.audit import audit  # brings torch, which whoever plans or compares does without

    started = time.perf_counter()
    found: Audit | None = None
    refused: Reason | None = None
    try:
        found = audit(
            parse_spec(order.spec),
            model_folder=order.model_folder,
            inputs=order.inputs,
            files=order.files,
            compute_dtype=order.compute_dtype,
            draw=order.draw,
            tolerances=order.tolerances,
            again=order.again,
            part=order.part,
        )
    except RefusedError as refusal:
        refused = refusal.reason
    return Replayed(audit=found, refused=refused, seconds=time.perf_counter() - started)
