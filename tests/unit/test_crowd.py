"""A crowd before the door: everybody gets in, in order, soon, and the line stays as short as it was said to be."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field, replace

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from memgrid_coordinator.policy.crowd import (
    FIRST_GUESS_S,
    LONGEST_S,
    Lane,
    LaneRule,
    appoint,
    knock,
    postpone,
    wait_s,
    worked,
)

RULE = LaneRule(working_max=32, waiting_max=1024, wait_max_s=5.0)


@dataclass(slots=True)
class Host:
    """Somebody who wants in, and what they were told."""

    number: int
    arrives_s: float
    appointment_s: float | None = None
    refusals: int = 0
    begun_s: float = 0.0
    in_at_s: float | None = None


@dataclass(slots=True)
class Crowd:
    """Hosts before one lane whose calls take `work_s` each, on a clock of its own, led as by `services/door.py`."""

    lane: Lane
    rng: random.Random
    work_s: float
    storm_ends_s: float = 0.0
    """Until then a call takes eight times as long."""
    now_s: float = 0.0
    line: deque[Host] = field(default_factory=deque)
    begun: list[Host] = field(default_factory=list)
    queued: list[Host] = field(default_factory=list)
    most_working: int = 0
    most_waiting: int = 0
    _events: list[tuple[float, int, str, Host]] = field(default_factory=list)
    _count: int = 0

    def at(self, moment_s: float, what: str, host: Host) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment_s, self._count, what, host))

    def run(self) -> None:
        while self._events:
            self.now_s, _, what, host = heapq.heappop(self._events)
            getattr(self, what)(host)
            self.most_working = max(self.most_working, self.lane.working)
            self.most_waiting = max(self.most_waiting, self.lane.waiting)

    def knocks(self, host: Host) -> None:
        answer = knock(self.lane, self.now_s, host.appointment_s)
        self.lane = answer.lane
        if answer.appointment_s is None:
            self.at(self.now_s + self.rng.uniform(0.01, 0.1), "logs_in", host)
        else:
            self.sent_away(host, answer.appointment_s)

    def logs_in(self, host: Host) -> None:
        if self.lane.may_start:
            self.lane = replace(self.lane, working=self.lane.working + 1)
            self.begin(host)
        elif self.lane.may_wait():
            self.lane = replace(self.lane, waiting=self.lane.waiting + 1)
            self.line.append(host)
            self.queued.append(host)
        else:
            self.lane, at_s = postpone(self.lane, self.now_s)
            self.sent_away(host, at_s)

    def sent_away(self, host: Host, appointment_s: float) -> None:
        host.refusals += 1
        host.appointment_s = appointment_s
        # As volunteers wait: what they were told and up to a quarter more.
        self.at(self.now_s + wait_s(appointment_s, self.now_s) * self.rng.uniform(1.0, 1.25), "knocks", host)

    def begin(self, host: Host) -> None:
        self.begun.append(host)
        host.begun_s = self.now_s
        self.at(self.now_s + self.work_s * (8 if self.now_s < self.storm_ends_s else 1), "ends", host)

    def ends(self, host: Host) -> None:
        host.in_at_s = self.now_s
        self.lane = worked(self.lane, self.now_s - host.begun_s)
        if self.line:
            self.lane = replace(self.lane, waiting=self.lane.waiting - 1)
            self.begin(self.line.popleft())
        else:
            self.lane = replace(self.lane, working=self.lane.working - 1)


def crowd_of(
    arrivals_s: list[float], *, work_s: float, seed: int, rule: LaneRule = RULE, storm_ends_s: float = 0.0
) -> tuple[Crowd, list[Host]]:
    crowd = Crowd(lane=Lane(rule=rule), rng=random.Random(seed), work_s=work_s, storm_ends_s=storm_ends_s)
    hosts = [Host(number, at_s) for number, at_s in enumerate(sorted(arrivals_s))]
    for host in hosts:
        crowd.at(host.arrives_s, "knocks", host)
    crowd.run()
    return crowd, hosts


@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(
    work_s=st.sampled_from([0.03, 0.064, 0.1, 0.3]),
    within_s=st.sampled_from([0.0, 1.0, 5.0]),
    count=st.sampled_from([500, 2_000, 10_000]),
    seed=st.integers(0, 99),
)
def test_all_of_a_crowd_get_in_soon_and_hardly_anybody_is_turned_away_twice(
    work_s: float, within_s: float, count: int, seed: int
) -> None:
    rng = random.Random(seed)
    crowd, hosts = crowd_of([rng.uniform(0, within_s) for _ in range(count)], work_s=work_s, seed=seed)
    assert all(host.in_at_s is not None for host in hosts)
    # Once, as long as calls are not slower than was thought when the appointments were given.
    assert max(host.refusals for host in hosts) <= (1 if work_s <= FIRST_GUESS_S else 20)
    assert sum(host.refusals for host in hosts) <= 2.5 * count
    assert crowd.most_working <= RULE.working_max
    assert crowd.most_waiting <= RULE.waiting_max
    at_best_s = count * max(work_s, FIRST_GUESS_S) / RULE.working_max
    assert crowd.now_s <= 5 + 1.5 * max(at_best_s, within_s), "it does not idle while hosts wait outside"


@given(seed=st.integers(0, 99))
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
def test_appointments_given_in_a_storm_do_not_make_it_last(seed: int) -> None:
    rng = random.Random(seed)
    arrivals_s = [rng.uniform(0, 8) for _ in range(10_000)]
    crowd, hosts = crowd_of(arrivals_s, work_s=0.064, seed=seed, storm_ends_s=8.0)
    last_s = crowd.now_s - 8.0
    assert last_s <= 3 * 10_000 * 0.064 / RULE.working_max, "at the storm's rate it would be eight times that long"
    assert sum(host.refusals for host in hosts) <= 4 * len(hosts)


@given(st.lists(st.floats(0, 3), min_size=50, max_size=300), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_nobody_in_line_is_overtaken(arrivals_s: list[float], seed: int) -> None:
    rule = LaneRule(working_max=2, waiting_max=16, wait_max_s=5.0)
    crowd, _ = crowd_of(arrivals_s, work_s=0.05, seed=seed, rule=rule)
    places = {id(host): place for place, host in enumerate(crowd.begun)}
    in_line = [places[id(host)] for host in crowd.queued]
    assert in_line == sorted(in_line)


@given(
    calls=st.integers(1, 5_000),
    work_s=st.floats(0.001, 2.0),
    waiting=st.integers(0, 1024),
    now_s=st.floats(0, 1e6),
)
def test_appointments_follow_each_other_as_fast_as_calls_are_worked_on(
    calls: int, work_s: float, waiting: int, now_s: float
) -> None:
    lane = Lane(rule=RULE, working=32, waiting=waiting, work_s=work_s)
    appointments = []
    for _ in range(calls):
        lane, at_s = appoint(lane, now_s)
        appointments.append(at_s)
    assert appointments == sorted(appointments)
    assert appointments[-1] <= now_s + LONGEST_S
    early = [at_s for at_s in appointments if at_s < now_s + LONGEST_S]
    assert len(early) <= LONGEST_S * lane.calls_per_s + 1


@given(work_s=st.floats(0.001, 60), waiting=st.integers(0, 2_000))
def test_a_slow_disk_shortens_the_line_instead_of_letting_everybody_run_out_of_time(
    work_s: float, waiting: int
) -> None:
    lane = Lane(rule=RULE, working=32, waiting=waiting, work_s=work_s)
    if lane.may_wait() and waiting:
        assert (waiting + 1) / lane.calls_per_s <= RULE.wait_max_s + work_s


def test_after_a_flood_of_strangers_who_never_come_back_others_are_let_in_at_once_or_nearly() -> None:
    lane, now_s = Lane(rule=RULE, work_s=0.064), 0.0
    for number in range(50_000):
        now_s = number / 2_000
        lane = knock(lane, now_s, None).lane
    now_s += 1.0
    passed = 0
    for number in range(100):
        answer = knock(lane, now_s + number / 100, None)
        lane, passed = answer.lane, passed + (answer.appointment_s is None)
    assert passed >= 95, "what was promised to them is not kept free"


def test_who_keeps_an_appointment_goes_before_newcomers() -> None:
    lane = Lane(rule=RULE, work_s=0.064)
    told: list[float] = []
    for number in range(3_000):  # a crowd, and the same number of newcomers while it is let in
        answer = knock(lane, number / 1e6, None)
        lane = answer.lane
        told += [] if answer.appointment_s is None else [answer.appointment_s]
    newcomers = 0
    for at_s in told:
        kept = knock(lane, at_s, at_s)
        assert kept.appointment_s is None
        newcomer = knock(kept.lane, at_s, None)
        lane, newcomers = newcomer.lane, newcomers + (newcomer.appointment_s is None)
        if at_s == told[-1]:
            break
    assert newcomers <= len(told) * 0.01


def test_who_comes_too_early_keeps_the_appointment() -> None:
    lane = Lane(rule=RULE, work_s=0.064)
    for _ in range(3_000):
        answer = knock(lane, 0.0, None)
        lane = answer.lane
    assert answer.appointment_s is not None
    again = knock(lane, 0.0, answer.appointment_s)
    assert again.appointment_s == answer.appointment_s
    assert again.lane == lane
    assert answer.appointment_s > 4.0
    assert knock(lane, 4.0, answer.appointment_s).appointment_s is None, "nobody came for the place"
