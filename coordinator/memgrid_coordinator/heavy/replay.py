"""Replay a part of a host's answer, drawn after it was reported; torch stays in the engine's process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memgrid.kinds.refusal import RefusedError
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of it: `reason` names what lay too far apart; `flops` are the replay's own."""

    reason: Reason | None
    statistics: dict[str, float]
    limits: dict[str, float]
    flops: int
    seconds: float


def replay(order: ReplayOrder) -> Replayed:
    """Compute a part again and compare."""
    from memgrid.distill.audit import audit  # brings torch, which whoever plans or compares does without

    started = time.perf_counter()
    try:
        found = audit(
            parse_spec(order.spec),
            model_folder=order.model_folder,
            inputs=order.inputs,
            files=order.files,
            compute_dtype=order.compute_dtype,
            draw=order.draw,
        )
    except RefusedError as refusal:
        seconds = time.perf_counter() - started
        return Replayed(reason=refusal.reason, statistics={}, limits={}, flops=0, seconds=seconds)
    return Replayed(
        reason=None,
        statistics=found.statistics,
        limits=found.limits,
        flops=found.flops,
        seconds=time.perf_counter() - started,
    )
