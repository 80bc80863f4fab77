"""How long a unit should take on a host, and when its lease runs out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

FIRST_GUESS_FLOPS_PER_S = {"cpu": 20e9, "mps": 1e12, "cuda": 5e12}
"""Until a host has reported, by kind of device: low, because a short first deadline wastes work."""
_SLOWEST, _FASTEST = 1e7, 1e16
_WEIGHT_OF_NEWEST = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineRule:
    """A lease lasts `slack` times its estimate, the queue ahead of it included, within these bounds."""

    slack: float = 5.0
    shortest: timedelta = timedelta(seconds=60)
    longest: timedelta = timedelta(hours=6)


def first_guess(device_kinds: tuple[str, ...]) -> float:
    """FLOP/s to assume of a host that has not reported yet."""
    return max((FIRST_GUESS_FLOPS_PER_S.get(kind, 20e9) for kind in device_kinds), default=20e9)


def estimate_s(flops: int, flops_per_s: float) -> float:
    """Seconds a unit should take.

    >>> estimate_s(40_000_000_000, 20e9)
    2.0
    """
    return flops / flops_per_s


def deadline(now: datetime, ahead_s: float, own_s: float, rule: DeadlineRule) -> datetime:
    """When a lease runs out that waits for `ahead_s` seconds of other work and then takes `own_s`."""
    length = timedelta(seconds=min((ahead_s + own_s) * rule.slack, rule.longest.total_seconds()))
    return now + max(length, rule.shortest)


def corrected_speed(flops_per_s: float, flops: int, compute_s: float) -> float:
    """The estimate of a host's speed after one more observation: an exponential mean, bounded against absurd claims.

    >>> corrected_speed(10.0e9, 20_000_000_000, 1.0)
    13000000000.0
    """
    observed = min(max(flops / max(compute_s, 1e-6), _SLOWEST), _FASTEST)
    return flops_per_s + _WEIGHT_OF_NEWEST * (observed - flops_per_s)
