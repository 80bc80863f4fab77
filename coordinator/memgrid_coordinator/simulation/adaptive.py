"""memgrid's own policy: one host computes, its record says how much is checked, and later audits make it final."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from memgrid.kinds.audit import Zone
from memgrid_coordinator.policy.diversity import may_confirm
from memgrid_coordinator.policy.quorum import Agreed, Pending
from memgrid_coordinator.policy.trust import (
    NEWCOMER,
    Judgement,
    TrustRecord,
    TrustRule,
    after_audit,
    after_result,
    audit_probability,
    check_of,
    held_max,
    is_final,
    is_final_at_once,
    is_overdue,
    suspended_until,
)
from memgrid_coordinator.simulation.agreeing import agreement
from memgrid_coordinator.simulation.answers import resolved
from memgrid_coordinator.simulation.classes import Classes
from memgrid_coordinator.simulation.grid import Grid
from memgrid_coordinator.simulation.hosts import HEALTHY, VirtualHost, moment
from memgrid_coordinator.simulation.units import RIGHT, Unit, Work


class Waiting:
    """A provisional result."""

    __slots__ = ("answer", "passed", "since_s", "unit")

    def __init__(self, unit: Unit, answer: int, passed: int, since_s: float) -> None:
        self.unit = unit
        self.answer = answer
        self.passed = passed
        """Audits its host had passed by then."""
        self.since_s = since_s


class Standing:
    """What the policy knows of one account's host."""

    __slots__ = ("finals", "host", "looked", "record", "waiting", "wrong_finals")

    def __init__(self, host: VirtualHost) -> None:
        self.host = host
        self.record: TrustRecord = NEWCOMER
        self.waiting: deque[Waiting] = deque()
        self.finals = 0
        """Results that became final, nobody else having computed them."""
        self.looked = 0
        """How many of those have been looked back on."""
        self.wrong_finals: deque[tuple[int, Unit, int, int]] = deque()
        """Of those, the wrong ones: their number, unit, answer and day."""


class Adaptive:
    """Carries out what `policy.trust` decides."""

    def __init__(self, grid: Grid, rule: TrustRule) -> None:
        self._grid = grid
        self._books = grid.books
        self._rule = rule
        self._classes = Classes(rule)
        # A second more, because moments are rounded to microseconds.
        self._wait_max_s = rule.provisional_max.total_seconds() + 1.0
        self._waiting: dict[Standing, None] = {}
        """Who has provisional results, and will be looked after when the oldest has waited too long."""

    def welcome(self, host: VirtualHost) -> None:
        host.standing = Standing(host)
        self._classes.joined(host)

    def is_trusted(self, host: VirtualHost) -> bool:
        """Hosts can count their results; of suspicions they are not told."""
        unmarked = replace(host.standing.record, recent=())
        return audit_probability(unmarked, self._rule) <= self._rule.audits_min

    def held_max(self, host: VirtualHost) -> int:
        return held_max(host.standing.record.passed, self._rule, self._grid.scenario.held_max)

    def may_have(self, host: VirtualHost, unit: Unit) -> bool:
        return all(may_confirm(host.origin, other.origin) for other in unit.hosts)

    def reported(self, unit: Unit, host: VirtualHost, answer: int) -> None:
        unit.claims.append((host, answer))
        if unit.wanted > 1:
            self._agree(unit)
            return
        resolved(unit)
        answer = unit.claims[0][1]
        standing: Standing = host.standing
        is_suspended = self._classes.is_suspended(host.numerics_class)
        draw = self._grid.rng.randbytes(32)
        may_stand = is_final_at_once(standing.record, self._rule)
        check = check_of(standing.record, self._rule, draw, is_class_suspended=is_suspended)
        if check.is_audited and not self._passes(standing, unit, answer):
            self._reopen(unit)
        elif check.is_replicated:
            if not check.is_audited:
                standing.record = after_result(standing.record)
            self._books.tally.replicas += 1
            unit.wanted = 2
            self._grid.want(unit)
        elif check.is_audited and may_stand:
            self._books.counted_on(unit, answer)
            self._stand(standing, unit, answer)
        else:
            if not check.is_audited:
                standing.record = after_result(standing.record)
            self._provisional(standing, unit, answer)

    def ending(self, work: Work) -> None:
        if work.provisional:
            for standing in list(self._waiting):
                if any(waiting.unit.campaign is work for waiting in standing.waiting):
                    self._hasten(standing)

    # One result

    def _provisional(self, standing: Standing, unit: Unit, answer: int) -> None:
        standing.waiting.append(Waiting(unit, answer, standing.record.passed, self._grid.now))
        if standing not in self._waiting:
            self._waiting[standing] = None
            self._grid.at(self._grid.now + self._wait_max_s, self._look_whether_due, standing)
        unit.accepted = answer
        unit.campaign.provisional += 1
        self._books.counted_on(unit, answer)
        self._grid.ended(unit)

    def _look_whether_due(self, standing: Standing) -> None:
        """Nothing stays provisional for ever, also where no later audits come."""
        waiting, now_s = standing.waiting, self._grid.now
        if waiting and is_overdue(moment(waiting[0].since_s), moment(now_s), self._rule):
            self._hasten(standing)
        if waiting:
            self._grid.at(waiting[0].since_s + self._wait_max_s, self._look_whether_due, standing)
        else:
            self._waiting.pop(standing, None)

    def _stand(self, standing: Standing, unit: Unit, answer: int) -> None:
        """A result of one host alone becomes final; after a fault it will be looked at again."""
        if answer != RIGHT:
            standing.wrong_finals.append((standing.finals, unit, answer, self._books.day(self._grid.now)))
        standing.finals += 1
        self._final(unit, standing.host, answer)

    def _final(self, unit: Unit, maker: VirtualHost, answer: int) -> None:
        unit.accepted = answer
        self._books.final(unit, maker, answer, self._grid.now)
        self._grid.ended(unit)

    def _reopen(self, unit: Unit) -> None:
        unit.begin_again()
        unit.wanted = unit.campaign.min_replicas
        self._grid.want(unit)

    def _passes(self, standing: Standing, unit: Unit, answer: int, *, is_overdue: bool = False) -> bool:
        """Audit a result, twice where that is suspicious; carry out what follows for its host."""
        answers, books, now = self._grid.answers, self._books, self._grid.now
        zone = answers.audited(standing.host, answer)
        books.audited(unit.flops, now, is_overdue=is_overdue)
        record, judgement = after_audit(standing.record, zone, self._rule)
        second = zone
        if judgement is Judgement.SUSPECTED:
            second = answers.audited(standing.host, answer, is_second=True)
            books.audited(unit.flops, now, is_second=True)
            record, judgement = after_audit(record, second, self._rule, is_second=True)
        is_fault = judgement is Judgement.AT_FAULT
        if self._classes.audited(standing.host, is_fault=is_fault, now_s=now):
            self._forgive(standing.host.numerics_class)
        if is_fault:
            self._at_fault(standing, record, unit, answer, is_quiet=second is not Zone.FAULT)
            return False
        standing.record = record
        if zone is Zone.PASS:
            standing.host.faults_in_a_row = 0
            self._ripen(standing)
        return True

    def _ripen(self, standing: Standing) -> None:
        """Call final what enough later audits have passed for."""
        waiting, passed = standing.waiting, standing.record.passed
        while waiting and is_final(passed - waiting[0].passed, self._rule):
            self._ripe(standing)

    def _ripe(self, standing: Standing) -> None:
        """The oldest provisional result becomes final."""
        ripe = standing.waiting.popleft()
        ripe.unit.campaign.provisional -= 1
        self._stand(standing, ripe.unit, ripe.answer)

    def _hasten(self, standing: Standing) -> None:
        """Audit as many of what waits as finality needs, drawn at random: then all of it is final, or none."""
        waiting = list(standing.waiting)
        drawn = self._grid.rng.sample(waiting, min(len(waiting), self._rule.final_after))
        for one in drawn:
            if not self._passes(standing, one.unit, one.answer, is_overdue=True):
                return
        while standing.waiting:
            self._ripe(standing)

    # Two or more results of one unit

    def _agree(self, unit: Unit) -> None:
        resolved(unit)
        verdict = agreement(unit, self._grid.answers, min_replicas=2)
        if isinstance(verdict, Pending):
            if len(unit.claims) >= 2:
                self._books.tally.disagreements += 1
            unit.wanted = len(unit.claims) + verdict.reports_wanted
            self._grid.want(unit)
        elif isinstance(verdict, Agreed):
            self._agreed(unit, verdict)
        else:
            self._reopen(unit)

    def _agreed(self, unit: Unit, verdict: Agreed) -> None:
        """A majority may be one person's: whoever is outvoted is audited before that is held against them."""
        claims = unit.claims
        exonerated = [
            claims[int(lease)] for lease, _ in verdict.rejected if self._passes_alone(unit, *claims[int(lease)])
        ]
        maker, answer = claims[int(verdict.medoid)]
        if exonerated and not self._passes_alone(unit, maker, answer):
            maker, answer = exonerated[0]
        for host, _ in claims[1:]:
            host.standing.record = after_result(host.standing.record)
        self._books.counted_on(unit, answer)
        self._final(unit, maker, answer)

    def _passes_alone(self, unit: Unit, host: VirtualHost, answer: int) -> bool:
        return self._passes(host.standing, unit, answer)

    # Faults

    def _at_fault(self, standing: Standing, record: TrustRecord, unit: Unit, answer: int, *, is_quiet: bool) -> None:
        host, grid = standing.host, self._grid
        is_forgiven = self._classes.is_suspended(host.numerics_class)
        self._books.at_fault(host, grid.now, is_right=answer == RIGHT, is_forgiven=is_forgiven)
        self._recall(standing)
        self._look_back(standing, unit.flops, is_quiet=is_quiet)
        if is_forgiven:
            return
        standing.record = record
        host.faults_in_a_row += 1
        host.door = replace(HEALTHY, suspended_until=suspended_until(host.faults_in_a_row, moment(grid.now)))
        if host.comes_back_new:
            grid.rename(host)
        else:
            grid.rest(host)

    def _recall(self, standing: Standing) -> None:
        self._books.tally.unfinished += len(standing.waiting)
        while standing.waiting:
            waiting = standing.waiting.popleft()
            self._books.recalled(waiting.unit, waiting.answer)
            waiting.unit.campaign.provisional -= 1
            self._reopen(waiting.unit)

    def _look_back(self, standing: Standing, flops: float, *, is_quiet: bool) -> None:
        """Audit its last final results again, none of them twice.

        After three suspicions all of them are computed anew instead: single audits don't find what is as quiet.
        """
        first = max(standing.looked, standing.finals - self._rule.look_back)
        if is_quiet:
            self._books.computed_anew(standing.finals - first, flops)
        else:
            self._books.looked_back(standing.finals - first, flops)
        standing.looked = standing.finals
        kept: deque[tuple[int, Unit, int, int]] = deque()
        for entry in standing.wrong_finals:
            number, unit, answer, day = entry
            if number >= first and (is_quiet or self._grid.answers.audited(standing.host, answer) is Zone.FAULT):
                self._books.retracted(unit, standing.host, day)
                self._reopen(unit)
            else:
                kept.append(entry)
        standing.wrong_finals = kept

    def _forgive(self, numerics_class: str) -> None:
        """A class has just been suspended: what was held against its hosts is not."""
        self._books.tally.suspended_classes.add(numerics_class)
        for host in self._classes.hosts(numerics_class):
            standing: Standing = host.standing
            if standing.record.faults:
                self._books.forgiven(host, standing.record.faults)
                standing.record = replace(standing.record, faults=0)
            host.faults_in_a_row = 0
            if host.door is not HEALTHY:
                host.door = HEALTHY
                self._grid.at(self._grid.now, self._grid.ask, host)
