"""Virtual units and leases, and the campaigns they come from."""

from __future__ import annotations

import math
from collections import deque
from random import Random
from typing import TYPE_CHECKING

from memgrid_coordinator.simulation.scenario import Campaign

if TYPE_CHECKING:
    from memgrid_coordinator.simulation.hosts import VirtualHost

RIGHT = 0
"""The answer of whoever computes honestly, on a machine that does."""
TOGETHER = 1 << 60
"""Added to a group's number: the answer of a host that cheats only if another of its group has the unit too."""
_COSTS = 4096
"""Different costs of one campaign's units."""


class Unit:
    """One unit. Answers are numbers: nought is right, equal numbers agree."""

    __slots__ = ("accepted", "campaign", "claims", "flops", "hosts", "key", "leases", "luck", "queued", "wanted")

    def __init__(self, campaign: Work, key: int, flops: int, luck: float, wanted: int) -> None:
        self.campaign = campaign
        self.key = key
        self.flops = flops
        self.luck = luck
        """From 0 to 1: on which units a group cheats."""
        self.wanted = wanted
        """Agreeing reports that it takes."""
        self.claims: list[tuple[VirtualHost, int]] = []
        self.hosts: list[VirtualHost] = []
        """Who had a lease of it: nobody has it twice."""
        self.leases: list[Lease] = []
        self.queued = 0
        """How often it stands among the open ones."""
        self.accepted: int | None = None
        """The answer that stands."""

    @property
    def vacancies(self) -> int:
        """How many more hosts it takes, beyond those that have it and those that are looked for."""
        return self.wanted - len(self.claims) - len(self.leases) - self.queued if self.accepted is None else 0

    def begin_again(self) -> None:
        """What was answered is thrown away; who answered stays known."""
        self.claims = []
        self.accepted = None


class Lease:
    """One unit at one host."""

    __slots__ = ("deadline_s", "ended_s", "estimate_s", "granted_s", "host", "is_copy", "is_over", "start_s", "unit")

    def __init__(self, unit: Unit, host: VirtualHost, granted_s: float, estimate_s: float, deadline_s: float) -> None:
        self.unit = unit
        self.host = host
        self.granted_s = granted_s
        self.estimate_s = estimate_s
        self.deadline_s = deadline_s
        self.start_s = -1.0
        self.ended_s = math.inf
        self.is_copy = False
        self.is_over = False


class Work:
    """A campaign: its fresh units, those that were sent back, and those that want one more report."""

    def __init__(self, campaign: Campaign, units: int | None, rng: Random, number: int) -> None:
        self.name = campaign.name
        self.number = number
        self.min_replicas = campaign.min_replicas
        self.arrives_s = 3600 * campaign.arrives_hour
        self.units = units
        self.fresh_left = math.inf if units is None else units
        self.open: deque[Unit] = deque()
        """Sent back, or wanting a further report."""
        self.running: dict[int, Unit] = {}
        self.unaccepted = math.inf if units is None else units
        self.provisional = 0
        self.done_s = math.nan
        self._rng = rng
        self._costs = [int(campaign.unit_flops * math.exp(rng.gauss(0.0, campaign.spread))) for _ in range(_COSTS)]
        self._made = 0

    @property
    def flops(self) -> float:
        """Of all its units, as drawn from its costs; infinite where it has no end."""
        return math.inf if self.units is None else self.units * sum(self._costs) / _COSTS

    @property
    def is_waiting(self) -> bool:
        """Whether some host could compute something for it."""
        return self.fresh_left > 0 or bool(self.open)

    def fresh(self) -> Unit:
        """The next unit that nobody had yet."""
        self.fresh_left -= 1
        self._made += 1
        flops = self._costs[self._rng.randrange(_COSTS)]
        key = self.number << 48 | self._made
        return Unit(self, key, flops, self._rng.random(), self.min_replicas)
