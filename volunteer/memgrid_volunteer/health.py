"""How a device fares, and when it had better rest: more likely than many bad units is one bad device."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memgrid.units import Reason

FAILURES_BEFORE_REST = 3
FIRST_REST_S = 15.0
REST_GROWTH = 4.0
REST_MAX_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`failures` in a row, the last of them for `reason`; no work before `rests_until_s` of a monotonic clock."""

    failures: int = 0
    reason: Reason | None = None
    rests_until_s: float = 0.0

    def is_resting(self, now_s: float) -> bool:
        return now_s < self.rests_until_s


WELL = Health()


def after_failure(health: Health, reason: Reason, now_s: float, *, is_certain: bool = False) -> Health:
    """One failure more; `is_certain`: it can't have been the unit's fault, so the rest begins with the first.

    >>> from memgrid.units import ReasonCode
    >>> reason, health, rests = Reason(code=ReasonCode.UNIT_FAILED), WELL, []
    >>> for _ in range(6):
    ...     health = after_failure(health, reason, 0.0)
    ...     rests.append(health.rests_until_s)
    >>> rests
    [0.0, 0.0, 15.0, 60.0, 240.0, 960.0]
    """
    failures = health.failures + 1
    if is_certain:
        failures = max(failures, FAILURES_BEFORE_REST)
    failed = replace(health, failures=failures, reason=reason)
    if failures < FAILURES_BEFORE_REST:
        return failed
    rest_s = min(FIRST_REST_S * REST_GROWTH ** min(failures - FAILURES_BEFORE_REST, 16), REST_MAX_S)
    return replace(failed, rests_until_s=now_s + rest_s)
