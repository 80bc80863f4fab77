"""Reports that come once their unit is settled: which are taken, and how they are judged among themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from memgrid.kinds.kind import Difference
from memgrid.units import LeaseId, ReasonCode
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.policy.quorum import Agreed, Pair, Pending, settle
from memgrid_coordinator.policy.trust import TrustRecord, TrustRule
from memgrid_coordinator.records import Lease, ReplicaClaim, Unit

_ENOUGH = 2
"""Accounts that believe each other: nothing is published of it, so more would only cost."""
_HAS_A_VOICE = frozenset({LeaseState.LEASED, LeaseState.REPORTED, LeaseState.AGREED, LeaseState.REJECTED})
_FOR_GOOD = frozenset({ReasonCode.BANNED, ReasonCode.PARENT_RECALLED})
_UNDECIDED = frozenset({ReasonCode.UNIT_SETTLED, ReasonCode.NO_AGREEMENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What becomes of reports on a unit that ended without a result; who is in neither list is not decided."""

    agreed: frozenset[LeaseId] = frozenset()
    rejected: tuple[tuple[LeaseId, str], ...] = ()
    compare: tuple[Pair, ...] = ()
    """What has to be compared before anything can be said."""


def is_still_taken(lease: Lease, unit: Unit, of_unit: Sequence[Lease], now: datetime) -> bool:
    """Whether a lease that the grid ended may be reported all the same: its host kept to what it was promised.

    Not after its deadline, not when its account was banned, and not beside another lease of that account: one
    account is one voice. Not when what it continues has become another since: it would be judged by results that
    had other inputs, and found wrong. What its host gave back or let run out is no lease of this kind.
    """
    if lease.state is not LeaseState.CANCELLED or lease.reported_at is not None or now > lease.deadline_at:
        return False
    if lease.reason is not None and lease.reason.code in _FOR_GOOD:
        return False
    opened_anew = unit.opened_at is not None and lease.granted_at < unit.opened_at
    if unit.parent_id is not None and (opened_anew or unit.state is UnitState.WAITING):
        return False
    return not any(other.account_id == lease.account_id and other.state in _HAS_A_VOICE for other in of_unit)


def is_believed_alone(record: TrustRecord, rule: TrustRule) -> bool:
    """Whether a host's report is credited where nobody can confirm it any more: when enough of its work was good.

    >>> is_believed_alone(TrustRecord(passed=5), TrustRule()), is_believed_alone(TrustRecord(passed=4), TrustRule())
    (True, False)
    """
    return record.passed + record.agreed >= rule.probation_results


def standing(leases: Sequence[Lease]) -> list[Lease]:
    """The reports that count on a unit that ended without a result, one an account: the credited, else the newest.

    Those that could not be decided stay among them: another that agrees may come within its own lease.
    """
    counting = [lease for lease in leases if has_a_say(lease)]
    counting.sort(key=lambda lease: (lease.state is LeaseState.AGREED, lease.fence))
    return list({lease.account_id: lease for lease in counting}.values())


def has_a_say(lease: Lease) -> bool:
    """Whether others can be compared with its report."""
    if lease.facts is None:
        return False
    if lease.state is LeaseState.CANCELLED:
        return lease.reason is not None and lease.reason.code in _UNDECIDED
    return lease.state in (LeaseState.REPORTED, LeaseState.AGREED)


def judge(
    claims: Sequence[ReplicaClaim], known: Mapping[Pair, Difference], believed: frozenset[LeaseId] = frozenset()
) -> Judged:
    """Judge reports among themselves: a majority of two accounts decides; without one, who is believed alone.

    >>> judge([], {})
    Judged(agreed=frozenset(), rejected=(), compare=())
    """
    verdict = settle(claims, known, min_replicas=_ENOUGH, max_replicas=len(claims) + 1)
    if isinstance(verdict, Agreed):
        return Judged(agreed=frozenset(verdict.agreed), rejected=verdict.rejected)
    if isinstance(verdict, Pending) and verdict.compare:
        return Judged(compare=verdict.compare)
    return Judged(agreed=believed & {claim.lease_id for claim in claims})
