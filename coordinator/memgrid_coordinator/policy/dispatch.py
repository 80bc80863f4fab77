"""How many leases a host may be given now, and if fewer than it wants, why."""

from __future__ import annotations

from datetime import datetime

from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.records import Host


def allowance(
    host: Host, *, want: int, held: int, held_max: int, draining: bool, now: datetime
) -> tuple[int, Reason | None]:
    """How many new leases, and the reason when that is fewer than `want`.

    Which units they are is the store's question: open, with a vacancy, most urgent and oldest first, and never
    one that the same account has had a lease of.
    """
    if draining:
        return 0, Reason(code=ReasonCode.DRAINING, text="the coordinator is stopping; keep what you have, call again")
    if host.suspended_until is not None and host.suspended_until > now:
        until = f"{host.suspended_until:%Y-%m-%d %H:%M:%S} UTC"
        text = f"{host.recent_faults} rejected reports in a row; no new work until {until}"
        return 0, Reason(code=ReasonCode.HOST_SUSPENDED, text=text)
    if held + want > held_max:
        return max(0, held_max - held), Reason(
            code=ReasonCode.QUOTA_REACHED, text=f"a host may hold {held_max} leases"
        )
    return want, None


def within_quota(
    allowed: int, reason: Reason | None, *, held: int, held_max: int, passed: int
) -> tuple[int, Reason | None]:
    """What is left of an allowance when the hosts of an account may hold `held_max` leases together.

    >>> within_quota(8, None, held=1, held_max=2, passed=0)[0], within_quota(1, None, held=1, held_max=2, passed=0)
    (1, (1, None))
    """
    left = max(0, held_max - held)
    if allowed <= left:
        return allowed, reason
    checked = f"{passed} of its results were checked so far" if passed else "none of its results was checked yet"
    text = f"a new account may hold {held_max} leases at a time, more as its results are checked: {checked}"
    return left, Reason(code=ReasonCode.QUOTA_REACHED, text=text)


def idle_reason(*, open_units: bool) -> Reason:
    """Why there was nothing for a host that may have work."""
    if open_units:
        return Reason(code=ReasonCode.ALL_SEEN, text="what is open now waits for other volunteers to confirm it")
    return Reason(code=ReasonCode.NO_WORK, text="no campaign has open units")
