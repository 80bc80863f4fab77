"""What others do, to compare with: a plain quorum of two, BOINC's adaptive replication, iExec's PoCo weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from memgrid_coordinator.policy.diversity import may_confirm
from memgrid_coordinator.policy.quorum import Agreed, Pending
from memgrid_coordinator.policy.trust import suspended_until
from memgrid_coordinator.simulation.agreeing import agreement
from memgrid_coordinator.simulation.answers import resolved
from memgrid_coordinator.simulation.grid import Grid
from memgrid_coordinator.simulation.hosts import HEALTHY, VirtualHost, moment
from memgrid_coordinator.simulation.units import RIGHT, Unit, Work

_BOINC_VALID_MIN = 10
_REPORTS_MAX = 10


class Replication(ABC):
    """What replicating policies have in common: reports gather, and what stands is final at once."""

    replicas_min = 1

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.books = grid.books

    def welcome(self, host: VirtualHost) -> None:
        host.standing = 0

    def is_trusted(self, host: VirtualHost) -> bool:
        return True

    def held_max(self, host: VirtualHost) -> int:
        return self.grid.scenario.held_max

    def may_have(self, host: VirtualHost, unit: Unit) -> bool:
        return True

    def ending(self, work: Work) -> None:  # noqa: B027 - nothing to do is what these policies do
        """What is accepted is final."""

    def reported(self, unit: Unit, host: VirtualHost, answer: int) -> None:
        unit.claims.append((host, answer))
        self.judge(unit)

    @abstractmethod
    def judge(self, unit: Unit) -> None:
        """Look at what was reported so far: accept it, or ask for more."""

    def more(self, unit: Unit, reports: int) -> None:
        """Ask for further reports; begin again where there are too many already."""
        if len(unit.claims) == 1:
            self.books.tally.replicas += 1
        elif len(unit.claims) >= unit.wanted:
            self.books.tally.disagreements += 1
        if len(unit.claims) >= _REPORTS_MAX:
            unit.begin_again()
            unit.wanted = 1
        else:
            unit.wanted = max(unit.wanted, len(unit.claims) + reports)
        self.grid.want(unit)

    def accept(self, unit: Unit, maker: VirtualHost, answer: int) -> None:
        unit.accepted = answer
        self.books.counted_on(unit, answer)
        self.books.final(unit, maker, answer, self.grid.now)
        self.grid.ended(unit)

    def at_fault(self, host: VirtualHost, answer: int) -> None:
        self.books.at_fault(host, self.grid.now, is_right=answer == RIGHT, is_forgiven=False)
        if host.comes_back_new:
            self.grid.rename(host)


class Quorum2(Replication):
    """Every unit is computed by two hosts of different people; disagreement calls a third. What memgrid did first."""

    def may_have(self, host: VirtualHost, unit: Unit) -> bool:
        return all(may_confirm(host.origin, other.origin) for other in unit.hosts)

    def judge(self, unit: Unit) -> None:
        if len(unit.claims) > 1:
            resolved(unit)
        verdict = agreement(unit, self.grid.answers, min_replicas=2)
        if isinstance(verdict, Pending):
            self.more(unit, verdict.reports_wanted)
        elif isinstance(verdict, Agreed):
            for lease, _ in verdict.rejected:
                host, answer = unit.claims[int(lease)]
                host.faults_in_a_row += 1
                until = suspended_until(host.faults_in_a_row, moment(self.grid.now))
                host.door = replace(HEALTHY, suspended_until=until)
                self.grid.rest(host)
                self.at_fault(host, answer)
            for lease in verdict.agreed:
                unit.claims[int(lease)][0].faults_in_a_row = 0
            self.accept(unit, *unit.claims[int(verdict.medoid)])
        else:
            unit.begin_again()
            unit.wanted = 2
            self.grid.want(unit)


class BoincAdaptive(Replication):
    """BOINC's adaptive replication with its defaults.

    A host whose last ten results were valid is taken at its word, but for a share of 1 in so many: then, and for all
    other hosts, two equal results are needed. A result taken at its word counts as valid. `standing` is the number
    of consecutive valid results.
    """

    def is_trusted(self, host: VirtualHost) -> bool:
        valid: int = host.standing
        return valid > _BOINC_VALID_MIN

    def judge(self, unit: Unit) -> None:
        if len(unit.claims) == 1:
            host, answer = unit.claims[0]
            if self.is_trusted(host) and self.grid.rng.random() > 1 / host.standing:
                resolved(unit)
                host.standing += 1
                self.accept(unit, *unit.claims[0])
                return
            self.more(unit, 1)
            return
        resolved(unit)
        answers = [answer for _, answer in unit.claims]
        canonical = next((answer for answer in answers if answers.count(answer) >= 2), None)
        if canonical is None:
            self.more(unit, 1)
            return
        for host, answer in unit.claims:
            if answer == canonical:
                host.standing += 1
            else:
                host.standing = 0
                self.at_fault(host, answer)
        maker = next(host for host, answer in unit.claims if answer == canonical)
        self.accept(unit, maker, canonical)


class Poco(Replication):
    """The Bayesian weights of iExec's Proof of Contribution: accept when the likelihood exceeds 1 - 1/T.

    The weight of a host is max(score // 3, 3) - 1, that of an answer the product of the weights of those who gave
    it, its likelihood its share of the sum of all and one. A score grows by one with every answer that others had to
    confirm, and falls to two thirds with one that was not accepted. `standing` is the score.
    (H. Croubois et al., PoCo: proof of contribution, iExec white paper and contracts.)
    """

    def is_trusted(self, host: VirtualHost) -> bool:
        weight = _poco_weight(host.standing)
        return self._accepts(weight, 1 + weight)

    def judge(self, unit: Unit) -> None:
        resolved(unit)
        weights: dict[int, int] = {}
        for host, answer in unit.claims:
            weights[answer] = weights.get(answer, 1) * _poco_weight(host.standing)
        best = max(weights, key=lambda answer: weights[answer])
        if not self._accepts(weights[best], 1 + sum(weights.values())):
            self.more(unit, 1)
            return
        claims = unit.claims
        for host, answer in claims:
            if answer != best:
                host.standing = host.standing * 2 // 3
                self.at_fault(host, answer)
            elif len(claims) > 1:
                host.standing += 1
        self.accept(unit, next(host for host, answer in claims if answer == best), best)

    def _accepts(self, weight: int, total: int) -> bool:
        trust = self.grid.scenario.poco_trust
        return weight * trust > total * (trust - 1)


def _poco_weight(score: int) -> int:
    """What the word of a host with this score weighs.

    >>> _poco_weight(0), _poco_weight(12), _poco_weight(300)
    (2, 3, 99)
    """
    return max(score // 3, 3) - 1
