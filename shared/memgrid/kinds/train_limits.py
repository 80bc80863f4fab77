"""How far two honest trainings may lie apart, by what they were computed in."""

from __future__ import annotations

from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype

COLD_STEPS = 10
"""Adam's first steps are little more than signs of the gradient, where the smallest rounding flips some.

Every round has them anew.
"""

_WARM: dict[ComputeDtype, dict[str, float]] = {
    ComputeDtype.FLOAT32: {
        "relative L2": 2e-3, "relative L2 of the largest": 5e-4, "worst part": 6e-3, "norm ratio": 5e-4,
        "Adam m": 4e-3, "Adam v": 4e-3, "loss": 5e-4,
    },
    ComputeDtype.FLOAT16: {
        "relative L2": 0.010, "relative L2 of the largest": 0.0025, "worst part": 0.03, "norm ratio": 0.002,
        "Adam m": 0.02, "Adam v": 0.02, "loss": 2e-3,
    },
    ComputeDtype.BFLOAT16: {
        "relative L2": 0.030, "relative L2 of the largest": 0.0075, "worst part": 0.08, "norm ratio": 0.005,
        "Adam m": 0.08, "Adam v": 0.08, "loss": 0.01,
    },
}  # fmt: skip
"""Relative differences of one segment to its replay in float32, from a warm Adam.

What they were drawn from: SmolLM2-135M, five steps of a LoRA and of a prefix, one start and shard each.

| | relative L2 | of the largest |
| --- | --- | --- |
| honest float32: threads, kernels, micro-batch | 0 | 0 |
| honest float16, loss scaled | .0021 to .0027 | .0005 to .0006 |
| honest bfloat16, three kernels | .017 to .021 | .0038 to .0051 |
| 8-bit weights | .038 to .050 | .0098 to .0124 |
| 5 % noise, a step fewer | .18 to .21 | .09 to .20 |
| half the batch, half the text | .21 to .35 | .08 to .15 |
| other data or order, extrapolated, poisoned | .42 to .55 | .13 to .17 |

Measured again with this code (a prefix of 16, steps of one row): bfloat16 .020 and .0034, worst part .057, Adam's m
.046; 8-bit weights .055 and .0104, worst part .13.

Two layers of a tiny model (`tests/unit/test_train_audit.py`) lose less: bfloat16 .002 to .005, 8-bit weights .005 to
.011. Where a model is that shallow, 8-bit weights pass as 16 bits, and are caught as float32 only.
"""
_COLD_FACTOR = 8.0
"""In bfloat16 .18 after five steps from nothing; there the lazy are still caught, the careful only in float32."""


def segment_limits(compute_dtype: ComputeDtype, warm_steps: int) -> dict[str, float]:
    """For a replay in float32 that begins so many steps after Adam did.

    Raises InvalidError for a claim that names no dtype.

    >>> segment_limits(ComputeDtype.BFLOAT16, 40)["relative L2"]
    0.03
    """
    limits = _WARM.get(compute_dtype)
    if limits is None:
        raise InvalidError(f"no tolerance for {compute_dtype}: a report names the dtype it was computed in")
    if warm_steps >= COLD_STEPS:
        return dict(limits)
    return {name: value if name == "loss" else value * _COLD_FACTOR for name, value in limits.items()}


def pair_limits(one: ComputeDtype, other: ComputeDtype, warm_steps: int) -> dict[str, float]:
    """For two sketches of the same unit: a whole unit drifts further than a segment, and an estimate adds its own."""
    first, second = segment_limits(one, warm_steps), segment_limits(other, warm_steps)
    return {name: 2 * max(first[name], second[name]) for name in ("relative L2", "worst part", "norm ratio")}
