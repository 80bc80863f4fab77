"""What is counted while a grid is simulated; parts of a grid add up."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class OfPopulation:
    """What hosts of one population did, and what became of it."""

    hosts: int = 0
    results: int = 0
    wrong: int = 0
    """Reported wrong."""
    wrong_standing: int = 0
    """Of the accepted results that stand at the end, how many of its are wrong."""
    faults: int = 0
    """Judged at fault."""
    accused: int = 0
    """Judged at fault for a right result."""
    forgiven: int = 0
    """Faults not punished, or forgiven, because the numerics class was suspended."""
    cheated_hosts: int = 0
    """Hosts that reported something wrong."""
    caught_hours: list[float] = field(default_factory=list)
    """From a host's first wrong report to its first fault after it."""
    caught_results: list[int] = field(default_factory=list)
    """How many wrong results it reported until then."""


@dataclass(slots=True)
class OfDay:
    """One simulated day, by the time of acceptance."""

    accepted: int = 0
    wrong: int = 0
    """Wrong when accepted or called final."""
    wrong_standing: int = 0
    """... and never found."""
    audits: int = 0


@dataclass(slots=True)
class OfCampaign:
    """How long a campaign of finite size took."""

    units: int = 0
    arrives_s: float = 0.0
    done_s: float = 0.0
    """When its last unit was accepted; infinite when that did not happen in time."""


@dataclass(slots=True)
class Tally:
    """Sums over one part of a grid. FLOPs are those of units, however fast the host."""

    reported_flops: float = 0.0
    audited_flops: float = 0.0
    """Of audits, second ones and overdue ones included."""
    looked_back_flops: float = 0.0
    """Of audits of final results after faults, and of computing them anew."""
    late_flops: float = 0.0
    """Spent on leases that expired, or on hosts that left."""
    copied_flops: float = 0.0
    """Spent on the slower of two copies."""
    accepted_flops: float = 0.0
    """Of results that stand: final, and provisional at the end."""
    reports: int = 0
    accepted: int = 0
    """Final results that stand."""
    provisional: int = 0
    """Waiting for finality at the end."""
    wrong_first: int = 0
    """Results that were wrong when they were first counted on, provisional or final."""
    counted_first: int = 0
    wrong_final: int = 0
    """Results that were wrong when they were called final."""
    called_final: int = 0
    wrong_standing: int = 0
    """Final results that are wrong and were not found."""
    recalled: int = 0
    """Provisional results sent back with their host."""
    recalled_wrong: int = 0
    unfinished: int = 0
    """Provisional results of hosts at the moment they were found at fault; all of them are to be recalled."""
    retracted: int = 0
    """Final results found wrong by looking back."""
    looked_back: int = 0
    computed_anew: int = 0
    """Final results of hosts that were suspicious too often, all computed again."""
    audits: int = 0
    second_audits: int = 0
    overdue_audits: int = 0
    replicas: int = 0
    """Units that a second account computed."""
    disagreements: int = 0
    expired: int = 0
    copies: int = 0
    suspended_classes: set[str] = field(default_factory=set)
    fluid_s: float = 0.0
    """When all finite campaigns would be done if every host that is on computed all the time, divisibly."""
    populations: dict[str, OfPopulation] = field(default_factory=dict)
    days: list[OfDay] = field(default_factory=list)
    campaigns: dict[str, OfCampaign] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Take up another part of the grid."""
        for name in (one.name for one in fields(Tally)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, int | float) and name != "fluid_s":
                setattr(self, name, mine + theirs)
        self.fluid_s = max(self.fluid_s, other.fluid_s)
        self.suspended_classes |= other.suspended_classes
        for name, population in other.populations.items():
            _add(self.populations.setdefault(name, OfPopulation()), population)
        for at, day in enumerate(other.days):
            if at == len(self.days):
                self.days.append(OfDay())
            _add(self.days[at], day)
        for name, campaign in other.campaigns.items():
            known = self.campaigns.setdefault(name, OfCampaign(arrives_s=campaign.arrives_s))
            known.units += campaign.units
            known.done_s = max(known.done_s, campaign.done_s)


def _add(one: OfPopulation | OfDay, other: OfPopulation | OfDay) -> None:
    for each in fields(one):
        setattr(one, each.name, getattr(one, each.name) + getattr(other, each.name))
