"""Virtual hosts: how fast they are, when they are on, where they call from, and which of them are one person."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from memgrid.units import AccountId, HostId
from memgrid_coordinator.policy.deadlines import first_guess
from memgrid_coordinator.policy.diversity import Origin
from memgrid_coordinator.records import Host
from memgrid_coordinator.simulation.behaviour import COME_BACK_NEW, Kind
from memgrid_coordinator.simulation.scenario import Availability, Device, Population, Scenario
from memgrid_coordinator.simulation.units import Lease

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""When every simulation begins."""


def moment(at_s: float) -> datetime:
    """The simulated second as the policies see time."""
    return EPOCH + timedelta(seconds=at_s)


class VirtualHost:
    """One machine of one account. Its hours are made up as the simulation reaches them."""

    __slots__ = (
        "account",
        "ahead",
        "believed_flops_per_s",
        "caught_at_s",
        "current",
        "door",
        "faults_in_a_row",
        "first_wrong_at_s",
        "flops_per_s",
        "group",
        "is_gone",
        "is_idle",
        "leaves_at_s",
        "numerics_class",
        "off_s",
        "on_from_s",
        "on_s",
        "on_until_s",
        "origin",
        "pauses",
        "population",
        "rng",
        "standing",
        "wrong_since",
    )

    def __init__(self, population: Population, device: Device, hours: Availability, rng: Random) -> None:
        self.population = population
        self.rng = rng
        self.flops_per_s = device.flops_per_s * math.exp(rng.gauss(0.0, device.spread))
        self.believed_flops_per_s = first_guess(("cpu",))
        self.numerics_class = device.numerics_class or device.name
        self.on_s, self.off_s = 3600 * hours.on_hours, 3600 * hours.off_hours
        self.on_from_s = self.on_until_s = 0.0
        self.pauses: list[tuple[float, float]] = []
        """While it was off since its newest lease began: the hours are made up ahead of the others' time."""
        self.leaves_at_s = math.inf
        self.group = 0
        self.account = AccountId("")
        self.origin = Origin(account_id=self.account, network="", enrolled_at=EPOCH)
        self.door = HEALTHY
        self.faults_in_a_row = 0
        self.current: Lease | None = None
        self.ahead: deque[Lease] = deque()
        self.is_idle = self.is_gone = False
        self.first_wrong_at_s = self.caught_at_s = -1.0
        self.wrong_since = 0
        self.standing: Any = None
        """What the policy knows of it."""

    @property
    def kind(self) -> Kind:
        return self.population.kind

    @property
    def comes_back_new(self) -> bool:
        return self.population.kind in COME_BACK_NEW

    def begin(self, at_s: float) -> None:
        """Draw whether it is on when it joins."""
        is_on = self.rng.random() * (self.on_s + self.off_s) < self.on_s
        start_s = at_s if is_on or not self.off_s else at_s + self.rng.expovariate(1 / self.off_s)
        self.on_from_s, self.on_until_s = start_s, start_s + self._stays_on_s()

    def next_on(self, at_s: float) -> float:
        """The first moment from `at_s` at which it is on."""
        while self.on_until_s <= at_s:
            self.on_from_s = self.on_until_s + self.rng.expovariate(1 / self.off_s)
            self.pauses.append((self.on_until_s, self.on_from_s))
            self.on_until_s = self.on_from_s + self._stays_on_s()
        return max(at_s, self.on_from_s)

    def work(self, from_s: float, work_s: float, limit_s: float) -> tuple[float, float]:
        """Compute for `work_s` seconds of being on, pausing while off; stop at the limit.

        Returns when it ends, infinite where the limit comes first, and how many seconds of work were done.
        """
        self.pauses.clear()
        at_s, left_s = self.next_on(from_s), work_s
        while at_s < limit_s:
            stop_s = min(self.on_until_s, limit_s)
            if at_s + left_s <= stop_s:
                return at_s + left_s, work_s
            left_s -= stop_s - at_s
            if stop_s >= limit_s:
                break
            at_s = self.next_on(stop_s)
        return math.inf, work_s - left_s

    def silent_s(self, now_s: float) -> float:
        """How long nobody has heard of it."""
        if self.leaves_at_s <= now_s:
            return now_s - self.leaves_at_s
        return next((now_s - off_s for off_s, on_s in self.pauses if off_s <= now_s < on_s), 0.0)

    def _stays_on_s(self) -> float:
        return self.rng.expovariate(1 / self.on_s) if self.off_s else math.inf


HEALTHY = Host(
    host_id=HostId(""),
    account_id=AccountId(""),
    public_key=b"",
    label="",
    session_id=None,
    sequence=0,
    flops_per_s=0.0,
    recent_faults=0,
    suspended_until=None,
)
"""What the door knows of a host that does not rest; it looks at nothing else."""


class Fleet:
    """Makes the hosts of one part of the grid: the same ones for every policy."""

    def __init__(self, scenario: Scenario, hosts: int, rng: Random) -> None:
        self._scenario = scenario
        self._rng = rng
        self._accounts = 0
        self._groups = 0
        self.hosts = [host for population in self._counted(hosts) for host in population]

    def _counted(self, hosts: int) -> Iterator[list[VirtualHost]]:
        """Each population with its share of the hosts, to the nearest whole host."""
        taken, upto = 0, 0.0
        for population in self._scenario.populations:
            upto += population.share * hosts
            count = round(upto) - taken
            taken += count
            yield self._members(population, count)

    def _members(self, population: Population, count: int) -> list[VirtualHost]:
        size = population.group or max(1, count)
        members = [self.make(population, 0.0) for _ in range(count)]
        for first in range(0, count, size):
            self._groups += 1
            network = self._network(population)
            for member in members[first : first + size]:
                member.group = self._groups
                if population.kind is Kind.SYBIL:
                    self.enrol(member, 0.0, network)
        return members

    def make(self, population: Population, at_s: float) -> VirtualHost:
        """A new machine of a population."""
        devices = [one for one in self._scenario.devices if not population.devices or one.name in population.devices]
        device = self._rng.choices(devices, [one.share for one in devices])[0]
        host = VirtualHost(population, device, self._scenario.availability, Random(self._rng.getrandbits(64)))
        if self._scenario.lifetime_days is not None:
            host.leaves_at_s = at_s + self._rng.expovariate(1 / (86400 * self._scenario.lifetime_days))
        self.enrol(host, at_s, self._network(population))
        host.begin(at_s)
        return host

    def replace(self, gone: VirtualHost, at_s: float) -> VirtualHost:
        """Who comes for one that left; a cheat's group goes on."""
        host = self.make(gone.population, at_s)
        host.group = gone.group
        return host

    def enrol(self, host: VirtualHost, at_s: float, network: str) -> None:
        """Give a host a new account."""
        self._accounts += 1
        host.account = AccountId(f"account-{self._accounts}")
        host.origin = Origin(account_id=host.account, network=network, enrolled_at=moment(at_s))
        host.door = HEALTHY
        host.faults_in_a_row = 0

    def _network(self, population: Population) -> str:
        """One of the grid's networks, spread over all neighbourhoods; empty for a private address."""
        networks = self._scenario.networks
        if self._rng.random() < networks.private_share:
            return ""
        number = self._rng.randrange(networks.prefixes)
        return f"{11 + number % 89}.{number // 89 % 256}.{number // (89 * 256) % 256}.0/24"
