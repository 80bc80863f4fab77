"""How much of a host's work is looked at: from what its audits have found, and nothing else.

The rule is Sarmenta's: whoever survives k audits and cheats with a rate that maximises what slips through leaves at
most f / ((1 - f) e k) of wrong results, so the audits of a host may become rarer as it passes them, down to a floor
that never goes. (L. Sarmenta, Sabotage-tolerance mechanisms for volunteer computing systems, 2001.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from memgrid.kinds.audit import Zone
from memgrid.units import ReasonCode

FAULTS = frozenset(
    {
        ReasonCode.DISAGREES,
        ReasonCode.SKETCH_MISMATCH,
        ReasonCode.REPLAY_DIFFERS,
        ReasonCode.DIGEST_MISMATCH,
        ReasonCode.NOT_FINITE,
        ReasonCode.WRONG_SHAPE,
        ReasonCode.BAD_SKETCH,
        ReasonCode.WRONG_OUTPUTS,
    }
)
"""Reasons that speak against the host rather than its network or its owner."""
FAULTS_FORGIVEN = 2
_FIRST_REST = timedelta(minutes=10)
_LONGEST_REST = timedelta(days=1)
_DOUBLINGS_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRule:
    """What a grid assumes of strangers, and how much wrong it lets pass.

    >>> round(TrustRule().audits_to_trust, 1)
    48.4
    """

    epsilon: float = 2e-3
    """The share of wrong results that may be accepted in the worst case."""
    bad_share: float = 0.2
    """The share of the work that is assumed to be done by cheats."""
    detection: float = 0.95
    """How likely one audit of a wrong result sees it."""
    audits_min: float = 0.1
    """The share of results that is audited however good the record."""
    blind_share: float = 0.01
    """The share of unaudited results that is computed once more by somebody else."""
    probation_results: int = 5
    """The first results of a record are all audited ..."""
    probation_blind: float = 0.5
    """... and this share of them computed once more by somebody else."""
    final_after: int = 2
    """A provisional result is final once so many later audits of the same record have passed ..."""
    provisional_max: timedelta = timedelta(days=1)
    """... or it gets an audit of its own, when it has waited for so long."""
    look_back: int = 1500
    """How many final results of a record are audited again after a fault."""
    suspicions_max: int = 3
    """So many suspicious audits ..."""
    suspicion_window: int = 20
    """... among so many of the newest are a fault."""
    class_faults_max: float = 0.05
    """The share of a numerics class's audits that may fail before it is a bug rather than cheats ..."""
    class_audits_min: int = 20
    """... once there were so many audits ..."""
    class_hosts_min: int = 3
    """... and so many different hosts have failed, a larger share of them than `bad_share`."""
    held_at_first: int = 2
    """Leases that a newcomer may hold; doubled by every `audits_per_doubling` audits passed."""
    audits_per_doubling: int = 10

    @property
    def audits_to_trust(self) -> float:
        """How many audits passed in a row bring a record to the floor: k* = f / ((1 - f) ε e d)."""
        odds = self.bad_share / (1 - self.bad_share)
        return odds / (self.epsilon * math.e * self.detection)

    def at_least(self, epsilon: float | None = None, bad_share: float | None = None) -> TrustRule:
        """This rule with a campaign's wishes, where these are stricter.

        A patient cheat leaves f / (e p d R) for a floor of p and R results looked back on: a smaller ε needs a
        higher floor too.

        >>> TrustRule().at_least(epsilon=0.1) == TrustRule()
        True
        >>> round(TrustRule().at_least(epsilon=5e-4).audits_min, 3)
        0.103
        """
        wanted = min(self.epsilon, self.epsilon if epsilon is None else epsilon)
        assumed = max(self.bad_share, self.bad_share if bad_share is None else bad_share)
        floor = assumed / (math.e * wanted * self.detection * max(1, self.look_back))
        return replace(self, epsilon=wanted, bad_share=assumed, audits_min=min(1.0, max(self.audits_min, floor)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRecord:
    """What is known of one account's host, for one kind of unit in one numerics class."""

    results: int = 0
    """Taken into account since the last fault, audited or not."""
    passed: int = 0
    """Audits passed since the last fault."""
    faults: int = 0
    """Ever."""
    recent: tuple[Zone, ...] = ()
    """The newest audits since the last fault, the newest last; at most `suspicion_window`."""
    agreed: int = 0
    """Results since the last fault that another account computed too, and agreed with."""


NEWCOMER = TrustRecord()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What is done about one result: a part of it replayed, all of it computed once more by somebody else."""

    is_audited: bool
    is_replicated: bool


class Judgement(StrEnum):
    """What an audit says about the host."""

    PASSED = "passed"
    SUSPECTED = "suspected"
    AT_FAULT = "at fault"


def audit_probability(record: TrustRecord, rule: TrustRule) -> float:
    """How likely the next result of this record is audited: p(k) = clamp((1 - k / k*) / d, floor, 1).

    Every fault doubles k*: a host that errs now and then climbs back more slowly each time, and one that goes on
    erring is audited always. So is everybody of whose newest audits one was suspicious: a quiet cheat would need
    hundreds of results to be marked three times, an honest accident costs twenty audits.

    >>> audit_probability(NEWCOMER, TrustRule())
    1.0
    >>> round(audit_probability(TrustRecord(results=40, passed=24), TrustRule()), 3)
    0.531
    >>> audit_probability(TrustRecord(results=500, passed=100), TrustRule())
    0.1
    """
    if record.results < rule.probation_results or Zone.SUSPICIOUS in record.recent:
        return 1.0
    needed = rule.audits_to_trust * (1 << min(record.faults, _DOUBLINGS_MAX))
    return min(1.0, max(rule.audits_min, (1 - record.passed / needed) / rule.detection))


def check_of(record: TrustRecord, rule: TrustRule, draw: bytes, *, is_class_suspended: bool = False) -> Check:
    """What is done about a result. `draw` is 32 secret bytes that exist only after the host is bound to it.

    While a numerics class goes unpunished, its hosts have nothing to lose: everything of theirs is looked at twice.

    >>> check_of(NEWCOMER, TrustRule(), bytes(32))
    Check(is_audited=True, is_replicated=True)
    """
    if is_class_suspended:
        return Check(is_audited=True, is_replicated=True)
    is_audited = _uniform(draw[:8]) < audit_probability(record, rule)
    if record.results < rule.probation_results:
        return Check(is_audited=is_audited, is_replicated=_uniform(draw[8:16]) < rule.probation_blind)
    is_replicated = not is_audited and _uniform(draw[8:16]) < rule.blind_share
    return Check(is_audited=is_audited, is_replicated=is_replicated)


def after_audit(
    record: TrustRecord, zone: Zone, rule: TrustRule, *, is_second: bool = False
) -> tuple[TrustRecord, Judgement]:
    """The record after an audit, and what that says about the host.

    A second audit, of a result whose first was suspicious, can only find a fault: its result has had its mark, and
    what looked wrong once earns no trust. Two audits of one result see the same numbers; two marks for one honest
    accident would make three of twenty far too easy.

    >>> record, judgement = after_audit(NEWCOMER, Zone.PASS, TrustRule())
    >>> record.passed, judgement
    (1, <Judgement.PASSED: 'passed'>)
    >>> after_audit(record, Zone.FAULT, TrustRule())
    (TrustRecord(results=0, passed=0, faults=1, recent=(), agreed=0), <Judgement.AT_FAULT: 'at fault'>)
    """
    if zone is Zone.FAULT:
        return TrustRecord(faults=record.faults + 1), Judgement.AT_FAULT
    if is_second:
        return record, Judgement.PASSED if zone is Zone.PASS else Judgement.SUSPECTED
    recent = (*record.recent, zone)[-rule.suspicion_window :]
    if recent.count(Zone.SUSPICIOUS) >= rule.suspicions_max:
        return TrustRecord(faults=record.faults + 1), Judgement.AT_FAULT
    passed = record.passed + (zone is Zone.PASS)
    judgement = Judgement.PASSED if zone is Zone.PASS else Judgement.SUSPECTED
    return replace(record, results=record.results + 1, passed=passed, recent=recent), judgement


def after_result(record: TrustRecord) -> TrustRecord:
    """The record after a result that nobody looked at.

    >>> after_result(TrustRecord(results=7, passed=5))
    TrustRecord(results=8, passed=5, faults=0, recent=(), agreed=0)
    """
    return replace(record, results=record.results + 1)


def after_agreement(record: TrustRecord) -> TrustRecord:
    """The record after a result that another account agreed with.

    It may hold more by that, but is looked at no less: two accounts of one cheat agree on anything.

    >>> after_agreement(TrustRecord(results=7, passed=5)).agreed
    1
    """
    return replace(record, agreed=record.agreed + 1)


def is_final_at_once(record: TrustRecord, rule: TrustRule) -> bool:
    """Whether a result that has passed its own audit stands at once: not during probation.

    An audit misses some; whoever leaves after each wrong result under a new name is never audited again. So a
    newcomer's results wait for later audits, or for another of their own, as if nobody had looked at them.
    `record` is that before the result.

    >>> is_final_at_once(NEWCOMER, TrustRule()), is_final_at_once(TrustRecord(results=5, passed=5), TrustRule())
    (False, True)
    """
    return record.results >= rule.probation_results


def is_final(passed_later: int, rule: TrustRule) -> bool:
    """Whether a provisional result stands, after so many later audits of its record have passed without a fault."""
    return passed_later >= rule.final_after


def is_overdue(provisional_since: datetime, now: datetime, rule: TrustRule) -> bool:
    """Whether a provisional result has waited so long that it gets an audit of its own."""
    return now - provisional_since >= rule.provisional_max


def held_max(passed: int, rule: TrustRule, held_max: int) -> int:
    """How many leases somebody may hold who has passed so many audits, or agreed as often; at most `held_max`.

    >>> [held_max(passed, TrustRule(), 64) for passed in (0, 9, 10, 30, 1000)]
    [2, 2, 4, 16, 64]
    """
    doublings = min(passed // rule.audits_per_doubling, _DOUBLINGS_MAX)
    return min(held_max, rule.held_at_first << doublings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRecord:
    """What audits have found lately in one numerics class, for one kind of unit."""

    audits: int
    failed: int
    hosts: int
    """How many different hosts were audited ..."""
    hosts_failed: int
    """... and how many of them failed at least once."""


def is_class_suspended(of_class: ClassRecord, rule: TrustRule) -> bool:
    """Whether a numerics class fails so often that it is a bug, for which no host is punished.

    More of its hosts must fail than there are cheats assumed: a few that always fail are no bug, and would otherwise
    go unpunished together with everybody of their class.

    >>> is_class_suspended(ClassRecord(audits=100, failed=30, hosts=10, hosts_failed=9), TrustRule())
    True
    >>> is_class_suspended(ClassRecord(audits=100, failed=30, hosts=40, hosts_failed=3), TrustRule())
    False
    """
    return (
        of_class.audits >= rule.class_audits_min
        and of_class.hosts_failed >= rule.class_hosts_min
        and of_class.failed > rule.class_faults_max * of_class.audits
        and of_class.hosts_failed > rule.bad_share * of_class.hosts
    )


def rest_after(faults: int) -> timedelta | None:
    """How long a host gets no work after so many faults in a row; None while they are forgiven.

    >>> rest_after(2), rest_after(3), rest_after(4)
    (None, datetime.timedelta(seconds=600), datetime.timedelta(seconds=1200))
    """
    if faults <= FAULTS_FORGIVEN:
        return None
    doublings = min(faults - FAULTS_FORGIVEN - 1, _DOUBLINGS_MAX)
    return min(_FIRST_REST * (1 << doublings), _LONGEST_REST)


def suspended_until(faults: int, now: datetime) -> datetime | None:
    rest = rest_after(faults)
    return None if rest is None else now + rest


def _uniform(eight: bytes) -> float:
    """Eight secret bytes as a number from 0 to just below 1; 53 bits, so that none rounds up to 1."""
    return (int.from_bytes(eight, "big") >> 11) / (1 << 53)
