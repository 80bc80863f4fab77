"""One part of a simulated grid: an event loop over hosts that ask, compute, report, expire, leave and come."""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush
from random import Random
from typing import Any, Protocol

from memgrid_coordinator.policy.deadlines import DeadlineRule, corrected_speed, deadline, estimate_s
from memgrid_coordinator.policy.dispatch import allowance
from memgrid_coordinator.policy.tails import Running, worth_copying
from memgrid_coordinator.simulation.answers import Answers
from memgrid_coordinator.simulation.books import Books
from memgrid_coordinator.simulation.hosts import EPOCH, HEALTHY, Fleet, VirtualHost, moment
from memgrid_coordinator.simulation.scenario import Scenario
from memgrid_coordinator.simulation.units import Lease, Unit, Work

_LOOKED_AT = 16
"""Of the units that want one more report, how many are looked at for a host that may confirm one."""
_SWEEP_S = 600.0
_TAIL_S = 60.0
"""How often idle hosts are offered copies."""
_DEADLINES = DeadlineRule()


class Policy(Protocol):
    """Decides what a report leads to; keeps what it knows of a host in `host.standing`."""

    def welcome(self, host: VirtualHost) -> None:
        """A new account."""

    def is_trusted(self, host: VirtualHost) -> bool:
        """Whether hosts that wait for trust would now begin to cheat."""

    def held_max(self, host: VirtualHost) -> int:
        """How many leases it may hold."""

    def may_have(self, host: VirtualHost, unit: Unit) -> bool:
        """Whether a host may confirm who had the unit before."""

    def reported(self, unit: Unit, host: VirtualHost, answer: int) -> None:
        """Take a report into account."""

    def ending(self, work: Work) -> None:
        """Nothing of a campaign is open or running any more."""


class Grid:
    """The mechanics that all policies share."""

    def __init__(self, scenario: Scenario, fleet: Fleet, works: list[Work], books: Books, rng: Random) -> None:
        self.scenario = scenario
        self.fleet = fleet
        self.works = works
        self.books = books
        self.rng = rng
        self.now = 0.0
        self.policy: Policy
        self.answers: Answers
        self._events: list[tuple[float, int, Any, Any]] = []
        self._sequence = 0
        self._idle: dict[VirtualHost, None] = {}
        self._is_tail_awaited = False
        self._tail_rule = scenario.tails.rule

    def run(self, policy: Policy, answers: Answers) -> None:
        """Simulate all days."""
        self.policy, self.answers = policy, answers
        end_s = 86400 * self.scenario.days
        for host in self.fleet.hosts:
            self._join(host)
        for work in self.works:
            self.at(work.arrives_s, self._wake, work)
        self.at(_SWEEP_S, self._sweep, None)
        events = self._events
        while events and events[0][0] <= end_s:
            self.now, _, act, subject = heappop(events)
            act(subject)
        self.now = end_s

    def at(self, at_s: float, act: Any, subject: Any) -> None:
        """Have `act(subject)` called at that time, or now if it is past."""
        self._sequence += 1
        heappush(self._events, (max(at_s, self.now), self._sequence, act, subject))

    def want(self, unit: Unit) -> None:
        """Other hosts are to compute this unit, as many as it still takes."""
        for _ in range(unit.vacancies):
            unit.queued += 1
            unit.campaign.open.append(unit)
        self._wake(unit.campaign)

    def rest(self, host: VirtualHost) -> None:
        """A host that may have no work for some time asks again when that is over."""
        until = host.door.suspended_until
        if until is not None:
            self.at((until - EPOCH).total_seconds(), self.ask, host)

    def rename(self, host: VirtualHost) -> None:
        """Come back under a new name."""
        self.fleet.enrol(host, self.now, host.origin.network)
        self.policy.welcome(host)

    def ended(self, unit: Unit) -> None:
        """A unit needs nobody any more; whoever still computes it stops."""
        for lease in unit.leases:
            if not lease.is_over:
                self._give_up(lease)
        unit.leases.clear()
        unit.campaign.running.pop(unit.key, None)
        if unit.queued:
            unit.campaign.open = deque(other for other in unit.campaign.open if other is not unit)
            unit.queued = 0

    def look_for_the_end(self, work: Work) -> None:
        """Tell the policy when nothing of a campaign is open or running."""
        if not work.running and not work.is_waiting:
            self.policy.ending(work)

    def _join(self, host: VirtualHost) -> None:
        self.policy.welcome(host)
        self.books.joined(host)
        if host.leaves_at_s < math.inf:
            self.at(host.leaves_at_s, self._leave, host)
        self.at(host.on_from_s + self.rng.random() * 60, self.ask, host)

    def _leave(self, host: VirtualHost) -> None:
        host.is_gone = True
        self._idle.pop(host, None)
        for lease in host.ahead:
            self.at(lease.deadline_s, self._expire, lease)
        host.ahead.clear()
        self._join(self.fleet.replace(host, self.now))

    def ask(self, host: VirtualHost) -> None:
        if host.is_gone:
            return
        self._idle.pop(host, None)
        now = EPOCH
        if host.door is not HEALTHY:
            now = moment(self.now)
            if host.door.suspended_until is None or host.door.suspended_until <= now:
                host.door = HEALTHY
        held = len(host.ahead) + (host.current is not None)
        want = self.scenario.ahead - held
        if want > 0:
            most = min(self.policy.held_max(host), self.scenario.held_max)
            allowed, _ = allowance(host.door, want=want, held=held, held_max=most, draining=False, now=now)
            while allowed > 0 and (unit := self._pick(host)) is not None:
                self._grant(unit, host)
                allowed -= 1
            if want > 0 and host.door.suspended_until is None and not host.ahead:
                self._idle[host] = None
        if host.current is None:
            self._start(host, self.now)
        if host.current is None and not self._is_tail_awaited and self.scenario.tails.copies:
            self._is_tail_awaited = True
            self.at(self.now + _TAIL_S, self._tail, None)

    def _pick(self, host: VirtualHost) -> Unit | None:
        for work in self.works:
            if work.arrives_s > self.now:
                continue
            waiting = work.open
            for at in range(min(len(waiting), _LOOKED_AT)):
                unit = waiting[at]
                if host not in unit.hosts and self.policy.may_have(host, unit):
                    del waiting[at]
                    unit.queued -= 1
                    return unit
            if work.fresh_left > 0:
                unit = work.fresh()
                for _ in range(unit.wanted - 1):
                    unit.queued += 1
                    work.open.append(unit)
                return unit
        return None

    def _grant(self, unit: Unit, host: VirtualHost) -> Lease:
        ahead_s = sum(lease.estimate_s for lease in host.ahead)
        own_s = estimate_s(unit.flops, host.believed_flops_per_s)
        if host.current is not None:
            ahead_s += host.current.estimate_s
        until = deadline(EPOCH, ahead_s, own_s, _DEADLINES)
        lease = Lease(unit, host, self.now, own_s, self.now + (until - EPOCH).total_seconds())
        unit.hosts.append(host)
        unit.leases.append(lease)
        unit.campaign.running[unit.key] = unit
        host.ahead.append(lease)
        if host.current is not None and lease.deadline_s <= host.current.ended_s:
            self.at(lease.deadline_s, self._expire, lease)
        return lease

    def _start(self, host: VirtualHost, from_s: float) -> None:
        """Begin with the next lease that still counts."""
        while host.ahead:
            lease = host.ahead.popleft()
            if lease.is_over or lease.deadline_s <= from_s:
                continue
            work_s = lease.unit.flops / host.flops_per_s
            limit_s = min(lease.deadline_s, host.leaves_at_s)
            lease.start_s = host.next_on(from_s)
            lease.ended_s, done_s = host.work(from_s, work_s, limit_s)
            host.current = lease
            if lease.ended_s < math.inf:
                delay_s = self.rng.random() * self.scenario.networks.report_delay_s
                self.at(lease.ended_s + delay_s, self._report, lease)
            else:
                self.books.late(done_s * host.flops_per_s)
                self.at(lease.deadline_s, self._expire, lease)
            for behind in host.ahead:
                if behind.deadline_s <= min(lease.ended_s, lease.deadline_s):
                    self.at(behind.deadline_s, self._expire, behind)
            return

    def _report(self, lease: Lease) -> None:
        host, unit = lease.host, lease.unit
        if lease.is_over or host.is_gone:
            return
        lease.is_over = True
        host.current = None
        compute_s = unit.flops / host.flops_per_s
        host.believed_flops_per_s = corrected_speed(host.believed_flops_per_s, unit.flops, compute_s)
        answer = self.answers.of(host, unit)
        self.books.reported(host, unit, answer, self.now)
        unit.leases.remove(lease)
        if not unit.leases:
            unit.campaign.running.pop(unit.key, None)
        self.policy.reported(unit, host, answer)
        self.look_for_the_end(unit.campaign)
        self._start(host, lease.ended_s)
        self.ask(host)

    def _expire(self, lease: Lease) -> None:
        if lease.is_over:
            return
        lease.is_over = True
        host, unit = lease.host, lease.unit
        self.books.expired()
        unit.leases.remove(lease)
        if not unit.leases:
            unit.campaign.running.pop(unit.key, None)
        if unit.vacancies > 0:
            self.want(unit)
        if host.current is lease:
            host.current = None
            if not host.is_gone:
                self.at(host.next_on(self.now), self.ask, host)

    def _give_up(self, lease: Lease) -> None:
        lease.is_over = True
        host = lease.host
        if host.current is not lease:
            return
        whole_s = lease.ended_s - lease.start_s
        share = min(1.0, max(0.0, (self.now - lease.start_s) / whole_s)) if math.isfinite(whole_s) else 0.0
        self.books.copied(share * lease.unit.flops)
        host.current = None
        self.at(self.now, self.ask, host)

    def _wake(self, work: Work) -> None:
        """Idle hosts look for what has come: as many as there is work for."""
        count = len(work.open) + min(work.fresh_left, len(self._idle))
        while self._idle and count > 0:
            host = next(iter(self._idle))
            del self._idle[host]
            self.at(host.next_on(self.now), self.ask, host)
            count -= 1

    def _sweep(self, _: None) -> None:
        for work in self.works:
            if work.arrives_s <= self.now and work.is_waiting:
                self._wake(work)
        self.at(self.now + _SWEEP_S, self._sweep, None)

    def _tail(self, _: None) -> None:
        """Offer idle hosts, the fastest first, what is expected to run longest."""
        self._is_tail_awaited = False
        works = [work for work in self.works if work.running and not work.is_waiting]
        idle = [host for host in self._idle if host.current is None and host.next_on(self.now) == self.now]
        idle.sort(key=lambda host: -host.believed_flops_per_s)
        for work in works:
            for host in idle:
                if not self._copied(work, host):
                    break
        if idle and works:
            self._is_tail_awaited = True
            self.at(self.now + _TAIL_S, self._tail, None)

    def _copied(self, work: Work, host: VirtualHost) -> bool:
        if host.current is not None:
            return True
        running = [_running(unit, self.now) for unit in work.running.values() if host not in unit.hosts]
        key = worth_copying(
            running,
            flops_per_s=host.believed_flops_per_s,
            units=work.units or len(work.running),
            rule=self._tail_rule,
        )
        if key is None:
            return False
        self._idle.pop(host, None)
        self._grant(work.running[int(key)], host).is_copy = True
        self.books.copy()
        self._start(host, self.now)
        return True


def _running(unit: Unit, now: float) -> Running:
    """A running unit as the policy sees it: by the lease that will end first, and whether its host is heard of."""
    leases = [lease for lease in unit.leases if not lease.is_over]
    first = min(leases, key=lambda lease: lease.granted_s + lease.estimate_s)
    host = first.host
    return Running(
        unit_key=str(unit.key),  # type: ignore[arg-type]
        flops=unit.flops,
        elapsed_s=now - first.granted_s,
        estimate_s=first.estimate_s,
        silent_s=host.silent_s(now),
        copies=len(leases),
    )
