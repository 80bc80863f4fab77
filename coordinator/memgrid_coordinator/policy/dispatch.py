"""How many leases a host may be given now, and if fewer than it wants, why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from memgrid.digest import Digest
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.records import Host, Unit

LOOKED_AT_FOR_ONE = 8
"""So many open units are looked at for each that is granted, for one whose model the host has."""


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


def preferred(found: Sequence[Unit], cached: frozenset[Digest], most: int) -> list[Unit]:
    """`most` of these units, given the most urgent first: of the equally urgent rather those of models at hand.

    A host that fetches gigabytes for one unit, and other gigabytes for the next, computes little.
    """
    return sorted(found, key=lambda unit: (-unit.priority, unit.model not in cached))[:most]


def idle_reason(*, open_units: bool, are_wished: bool = True) -> Reason:
    """Why there was nothing for a host that may have work."""
    if not are_wished:
        return Reason(code=ReasonCode.NOT_WISHED, text="what is open now is nothing that this host's owner wishes")
    if open_units:
        return Reason(code=ReasonCode.ALL_SEEN, text="what is open now waits for other volunteers to confirm it")
    return Reason(code=ReasonCode.NO_WORK, text="no campaign has open units")
