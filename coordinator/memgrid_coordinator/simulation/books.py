"""What happens in a simulated grid, written into its tally."""

from __future__ import annotations

import math

from memgrid_coordinator.simulation.hosts import VirtualHost
from memgrid_coordinator.simulation.tally import OfCampaign, OfDay, OfPopulation, Tally
from memgrid_coordinator.simulation.units import RIGHT, TOGETHER, Unit, Work

_DAY_S = 86400.0


class Books:
    """One entry for each thing that happens; time is told by the grid."""

    def __init__(self, days: float, works: list[Work], audit_cost: float) -> None:
        self.tally = Tally(days=[OfDay() for _ in range(math.ceil(days))])
        self._audit_cost = audit_cost
        for work in works:
            if work.units is not None:
                self.tally.campaigns[work.name] = OfCampaign(
                    units=work.units, arrives_s=work.arrives_s, done_s=math.inf
                )

    def _of(self, host: VirtualHost) -> OfPopulation:
        return self.tally.populations.setdefault(host.population.name, OfPopulation())

    def day(self, now_s: float) -> int:
        """Which day it is, the last one at the very end."""
        return min(int(now_s / _DAY_S), len(self.tally.days) - 1)

    def joined(self, host: VirtualHost) -> None:
        self._of(host).hosts += 1

    def reported(self, host: VirtualHost, unit: Unit, answer: int, now_s: float) -> None:
        tally, of_population = self.tally, self._of(host)
        tally.reports += 1
        tally.reported_flops += unit.flops
        of_population.results += 1
        if RIGHT < answer < TOGETHER:
            of_population.wrong += 1
            host.wrong_since += 1
            if host.first_wrong_at_s < 0:
                host.first_wrong_at_s = now_s
                of_population.cheated_hosts += 1

    def late(self, flops: float) -> None:
        self.tally.late_flops += flops

    def expired(self) -> None:
        self.tally.expired += 1

    def copy(self) -> None:
        self.tally.copies += 1

    def copied(self, flops: float) -> None:
        self.tally.copied_flops += flops

    def audited(self, flops: float, now_s: float, *, is_second: bool = False, is_overdue: bool = False) -> None:
        tally = self.tally
        tally.audits += 1
        tally.second_audits += is_second
        tally.overdue_audits += is_overdue
        tally.audited_flops += self._audit_cost * flops
        tally.days[self.day(now_s)].audits += 1

    def looked_back(self, results: int, flops: float) -> None:
        """So many final results audited again, each of so many FLOPs."""
        self.tally.looked_back += results
        self.tally.looked_back_flops += self._audit_cost * results * flops

    def computed_anew(self, results: int, flops: float) -> None:
        """So many final results computed again by others, each of so many FLOPs; the wrong ones are retracted too."""
        self.tally.computed_anew += results
        self.tally.looked_back_flops += results * flops

    def at_fault(self, host: VirtualHost, now_s: float, *, is_right: bool, is_forgiven: bool) -> None:
        of_population = self._of(host)
        of_population.faults += 1
        of_population.accused += is_right
        of_population.forgiven += is_forgiven
        if host.first_wrong_at_s >= 0 and host.caught_at_s < 0 and not is_right:
            host.caught_at_s = now_s
            of_population.caught_hours.append((now_s - host.first_wrong_at_s) / 3600)
            of_population.caught_results.append(host.wrong_since)

    def forgiven(self, host: VirtualHost, faults: int) -> None:
        self._of(host).forgiven += faults

    def counted_on(self, unit: Unit, answer: int) -> None:
        """Somebody may use a result from now on, be it provisional."""
        self.tally.counted_first += 1
        self.tally.wrong_first += answer != RIGHT
        self.tally.accepted_flops += unit.flops

    def recalled(self, unit: Unit, answer: int) -> None:
        """A provisional result is sent back with its host."""
        self.tally.recalled += 1
        self.tally.recalled_wrong += answer != RIGHT
        self.tally.accepted_flops -= unit.flops

    def final(self, unit: Unit, maker: VirtualHost, answer: int, now_s: float) -> None:
        tally, day = self.tally, self.tally.days[self.day(now_s)]
        tally.called_final += 1
        tally.accepted += 1
        day.accepted += 1
        if answer != RIGHT:
            tally.wrong_final += 1
            tally.wrong_standing += 1
            day.wrong += 1
            day.wrong_standing += 1
            self._of(maker).wrong_standing += 1
        work = unit.campaign
        work.unaccepted -= 1
        if work.unaccepted == 0 and math.isinf(self.tally.campaigns[work.name].done_s):
            self.tally.campaigns[work.name].done_s = now_s

    def retracted(self, unit: Unit, maker: VirtualHost, day: int) -> None:
        """A final result that was accepted on that day is found to be wrong."""
        tally = self.tally
        tally.retracted += 1
        tally.accepted -= 1
        tally.wrong_standing -= 1
        tally.accepted_flops -= unit.flops
        tally.days[day].wrong_standing -= 1
        self._of(maker).wrong_standing -= 1
        unit.campaign.unaccepted += 1
