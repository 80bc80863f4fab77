"""How far two honest trainings may lie apart, by what they were computed in and how warm Adam was."""

from __future__ import annotations

from memgrid.kinds.tolerances import Tolerances
from memgrid.units import ComputeDtype

COLD_STEPS = 10
"""Adam's first steps are little more than signs of the gradient, where the smallest rounding flips some.

Every round has them anew.
"""
_COLD_FACTOR = 8.0
"""In bfloat16 .18 after five steps from nothing; there the lazy are still caught, the careful only in float32."""


def segment_limits(tolerances: Tolerances, compute_dtype: ComputeDtype, warm_steps: int) -> dict[str, float]:
    """For a replay in float32 that begins so many steps after Adam did.

    Raises InvalidError for a claim that names no dtype.

    >>> from memgrid.kinds.tolerances import BUILT_IN
    >>> segment_limits(BUILT_IN, ComputeDtype.BFLOAT16, 40)["relative L2"]
    0.03
    """
    row = tolerances.row("train.segment", compute_dtype, ComputeDtype.FLOAT32)
    return {name: limit if name == "loss" else limit * _factor(warm_steps) for name, limit in row.items()}


def pair_limits(tolerances: Tolerances, one: ComputeDtype, other: ComputeDtype, warm_steps: int) -> dict[str, float]:
    """For two sketches of the same unit, which began so many steps after Adam did."""
    row = tolerances.row("train.sketch", one, other)
    return {name: limit * _factor(warm_steps) for name, limit in row.items()}


def _factor(warm_steps: int) -> float:
    return 1.0 if warm_steps >= COLD_STEPS else _COLD_FACTOR
