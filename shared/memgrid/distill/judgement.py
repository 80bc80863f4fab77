"""What a replay says: how far a claim and its replay are apart, and whether that is further than allowed."""

from __future__ import annotations

from dataclasses import dataclass

from memgrid.kinds.refusal import RefusedError
from memgrid.units import ReasonCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A replay that agreed: what was found, what would have been allowed, and what the replay cost.

    `statistics` and `limits` have the same names; `flops` are the checker's, to set against the unit's own.
    """

    statistics: dict[str, float]
    limits: dict[str, float]
    flops: int


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
