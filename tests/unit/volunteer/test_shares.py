"""Shares of grids: over a long simulated run each grid with work gets its part, and nobody's absence is a debt."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from memgrid_volunteer.grid_ids import GridId, grid_id
from memgrid_volunteer.shares import (
    DEBT_MAX_S,
    HALF_LIFE_S,
    SHARE_MAX,
    SWITCH_S,
    Levels,
    charged,
    cost,
    fitted,
    slots,
    turn,
)

DAY_S = 86_400.0
GRIDS = tuple(GridId(name) for name in "abcd")


@dataclass
class Machine:
    """So many equal devices that take units as the volunteer does; a grid's units all need one model."""

    shares: dict[GridId, int]
    unit_s: dict[GridId, float]
    devices: int = 1
    has_work: Callable[[GridId, float], bool] = lambda grid, now_s: True
    levels: Levels = field(default_factory=lambda: Levels(of={}))
    now_s: float = 0.0

    def run(self, until_s: float) -> Counter[GridId]:
        """Device-seconds that each grid got."""
        got: Counter[GridId] = Counter()
        free = [(self.now_s, device) for device in range(self.devices)]
        running: dict[int, GridId] = {}
        warm: dict[int, GridId] = {}
        while free[0][0] < until_s:
            self.now_s, device = heapq.heappop(free)
            ended = running.pop(device, None)
            present = {grid for grid in self.shares if self.has_work(grid, self.now_s)} | set(running.values())
            if ended is not None:
                self.levels = charged(self.levels, ended, self.unit_s[ended], shares=self.shares,
                                      competing=present, now_s=self.now_s)  # fmt: skip
                got[ended] += self.unit_s[ended]
            ready = {grid for grid in self.shares if self.has_work(grid, self.now_s)}
            if not ready:
                heapq.heappush(free, (self.now_s + 60.0, device))
                continue
            now = fitted(self.levels, self.shares).of
            busy = Counter(running.values())
            expected = {grid: now[grid] + cost(busy[grid] * self.unit_s[grid], grid, self.shares) for grid in ready}
            grid = turn(expected, self.shares, {warm[device]} & ready if device in warm else frozenset())
            running[device] = warm[device] = grid
            heapq.heappush(free, (self.now_s + self.unit_s[grid], device))
        return got


some_shares = st.dictionaries(st.sampled_from(GRIDS), st.integers(5, SHARE_MAX), min_size=2, max_size=4)
lengths = st.fixed_dictionaries({grid: st.floats(300.0, 3600.0) for grid in GRIDS})


@settings(max_examples=25, deadline=None)
@given(shares=some_shares, unit_s=lengths, devices=st.integers(1, 4))
def test_each_grid_with_work_gets_its_share(
    shares: dict[GridId, int], unit_s: dict[GridId, float], devices: int
) -> None:
    days = 3
    got = Machine(shares, unit_s, devices).run(days * DAY_S)
    whole_s, total = days * DAY_S * devices, sum(shares.values())
    for grid, share in shares.items():
        # A device's worth of its own longest unit, and what warm models and the others' units may shift.
        slack_s = SWITCH_S + 2 * devices * max(unit_s[each] for each in shares)
        assert abs(got[grid] - whole_s * share / total) <= slack_s, grid


@settings(max_examples=20, deadline=None)
@given(unit_s=lengths, devices=st.integers(1, 4), away=st.sampled_from(GRIDS[:2]))
def test_a_grid_without_work_costs_nobody_anything(unit_s: dict[GridId, float], devices: int, away: GridId) -> None:
    shares = dict.fromkeys(GRIDS[:3], 100)
    got = Machine(shares, unit_s, devices, has_work=lambda grid, now_s: grid != away).run(DAY_S)
    assert got[away] == 0
    # No device was ever idle, and the two others share evenly what the third left.
    assert sum(got.values()) >= DAY_S * devices - devices * max(unit_s.values())
    first, second = (got[grid] for grid in shares if grid != away)
    assert abs(first - second) <= 2 * (SWITCH_S + 2 * devices * max(unit_s.values()))


@settings(max_examples=20, deadline=None)
@given(
    share=st.integers(5, SHARE_MAX),
    unit_s=st.floats(300.0, 3600.0),
    devices=st.integers(1, 4),
    is_known=st.booleans(),
)
def test_who_comes_late_or_comes_back_does_not_take_the_machine_for_days(
    share: int, unit_s: float, devices: int, is_known: bool
) -> None:
    old, late = GRIDS[:2]
    machine = Machine({old: 100}, {old: unit_s, late: unit_s}, devices)
    machine.shares |= {late: share} if is_known else {}
    machine.has_work = lambda grid, now_s: grid == old
    machine.run(5 * DAY_S)
    machine.shares |= {late: share}
    machine.has_work = lambda grid, now_s: True
    day = machine.run(machine.now_s + DAY_S)
    part = share / (100 + share)
    owed_s = DEBT_MAX_S * part if is_known else 0.0
    assert day[late] <= DAY_S * devices * part + owed_s + SWITCH_S + 3 * devices * unit_s


def test_a_share_of_nought_gets_only_what_others_leave() -> None:
    a, spare = GRIDS[:2]
    machine = Machine({a: 100, spare: 0}, dict.fromkeys(GRIDS, 300.0))
    assert machine.run(DAY_S)[spare] == 0
    machine.has_work = lambda grid, now_s: grid == spare or now_s > 1.5 * DAY_S
    got = machine.run(2 * DAY_S)
    assert abs(got[spare] - DAY_S / 2) <= 600 and abs(got[a] - DAY_S / 2) <= 600


def test_a_change_of_shares_counts_from_then_on() -> None:
    a, b = GRIDS[:2]
    machine = Machine({a: 100, b: 100}, dict.fromkeys(GRIDS, 300.0))
    machine.run(3 * DAY_S)
    machine.shares = {a: 300, b: 100}
    got = machine.run(4 * DAY_S)
    assert abs(got[a] - 0.75 * DAY_S) < 4 * SWITCH_S


def test_levels_fade_but_do_not_when_the_clock_is_put_back() -> None:
    levels, shares = Levels(at_s=1000.0, of={GRIDS[0]: 800.0, GRIDS[1]: 0.0}), {GRIDS[0]: 1, GRIDS[1]: 1}
    both = frozenset(shares)
    later = charged(levels, GRIDS[1], 0.0, shares=shares, competing=both, now_s=1000.0 + HALF_LIFE_S)
    assert later.of[GRIDS[0]] == 400.0
    earlier = charged(levels, GRIDS[1], 0.0, shares=shares, competing=both, now_s=0.0)
    assert earlier.of[GRIDS[0]] == 800.0 and earlier.at_s == 1000.0


level_maps = st.dictionaries(st.sampled_from(GRIDS), st.floats(0.0, 1e7), min_size=1)
all_shares = st.fixed_dictionaries({grid: st.integers(0, SHARE_MAX) for grid in GRIDS})


@given(levels=level_maps, shares=all_shares, warm=st.frozensets(st.sampled_from(GRIDS)))
def test_a_warm_model_is_never_a_way_round_shares(
    levels: dict[GridId, float], shares: dict[GridId, int], warm: frozenset[GridId]
) -> None:
    chosen = turn(levels, shares, warm)
    assert chosen in levels
    racing = [level for grid, level in levels.items() if shares[grid]]
    if racing:
        assert shares[chosen] and levels[chosen] <= min(racing) + SWITCH_S


@given(levels=level_maps, shares=all_shares, unit_s=lengths, count=st.integers(0, 64))
@example(levels={GRIDS[0]: 0.0}, shares=dict.fromkeys(GRIDS, 0), unit_s=dict.fromkeys(GRIDS, 5.0), count=2)
def test_all_that_is_asked_for_is_asked_of_somebody(
    levels: dict[GridId, float], shares: dict[GridId, int], unit_s: dict[GridId, float], count: int
) -> None:
    found = slots(levels, shares, unit_s, count)
    assert sum(found.values()) == count and set(found) == set(levels)
    for fewer, more in pairwise(slots(levels, shares, unit_s, each) for each in range(count + 1)):
        assert all(more[grid] >= fewer[grid] for grid in levels)


@given(seed=st.integers(0, 1 << 30))
def test_every_address_has_its_own_name(seed: int) -> None:
    rng = random.Random(seed)
    hosts = ["grid.example", "grid-example", "127.0.0.1", "[::1]", "grid.example-443"]
    one, other = (f"https://{rng.choice(hosts)}:{rng.choice([443, 7070, 70])}" for _ in range(2))
    assume(one != other)
    assert grid_id(one) != grid_id(other)
