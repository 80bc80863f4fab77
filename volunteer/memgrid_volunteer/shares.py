"""Whose turn it is on a machine that computes for several grids: by their shares, and by what each has had lately.

Every grid has a level: the device-seconds it has had, divided by its part of all shares. Whoever is lowest comes
next, so levels rise together. They fade, so that a week counts more than a year. Source: weighted fair queueing, with
the start rule of Goyal, Vin and Cheng, "Start-time Fair Queuing", 1996, and a half-life as in BOINC's client, where
such a level is the recent estimated credit by resource share.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from memgrid_volunteer.grid_ids import GridId

SHARE_DEFAULT = 100
SHARE_MAX = 1000
HALF_LIFE_S = 10 * 86_400.0
DEBT_MAX_S = 3_600.0
"""How far below the others a grid may be that had no work: with half of the shares it makes up for half an hour."""
SWITCH_S = 300.0
"""A device stays with the model it has loaded while no other grid is further below than that."""
UNIT_LEAST_S = 0.05
"""No unit is planned as shorter than that, whatever its grid says."""

Shares = Mapping[GridId, int]
"""A whole number each; a grid with 0 gets what no other has work for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Where each grid stands, in seconds, as of `at_s` in seconds since 1970."""

    at_s: float = 0.0
    of: Mapping[GridId, float]


def cost(device_s: float, grid: GridId, shares: Shares) -> float:
    """By how much so many device-seconds lift a grid.

    >>> cost(60.0, "a", {"a": 25, "b": 75}), cost(60.0, "b", {"a": 25, "b": 75}), cost(60.0, "c", {"a": 5, "c": 0})
    (240.0, 80.0, 60.0)
    """
    return device_s * sum(shares.values()) / shares[grid] if shares[grid] else device_s


def fitted(levels: Levels, shares: Shares) -> Levels:
    """Of the grids that were joined, and no others; a newcomer is owed nothing of what was before it.

    >>> fitted(Levels(of={"a": 90.0, "gone": 5.0}), {"a": 100, "new": 100}).of
    {'a': 90.0, 'new': 90.0}
    """
    known = {grid: level for grid, level in levels.of.items() if grid in shares}
    lowest = min(known.values(), default=0.0)
    return Levels(at_s=levels.at_s, of={grid: known.get(grid, lowest) for grid in shares})


def charged(
    levels: Levels, grid: GridId, device_s: float, *, shares: Shares, competing: AbstractSet[GridId], now_s: float
) -> Levels:
    """After so much was computed for a grid; `competing` are those that have units here.

    Who has none is owed little: an absence of weeks does not become weeks of the whole machine.

    >>> before = Levels(of={"a": 0.0, "b": 0.0})
    >>> charged(before, "a", 7200.0, shares={"a": 1, "b": 1}, competing={"a"}, now_s=0.0).of
    {'a': 14400.0, 'b': 10800.0}
    """
    faded = 0.5 ** (max(0.0, now_s - levels.at_s) / HALF_LIFE_S)
    now = {each: level * faded for each, level in fitted(levels, shares).of.items()}
    now[grid] += cost(device_s, grid, shares)
    busy = {grid, *competing}
    least = min(now[each] for each in busy if each in now) - DEBT_MAX_S
    lifted = {each: level if each in busy else max(level, least) for each, level in now.items()}
    return Levels(at_s=max(now_s, levels.at_s), of=lifted)


def turn(levels: Mapping[GridId, float], shares: Shares, warm: AbstractSet[GridId] = frozenset()) -> GridId:
    """Of grids with a unit that is ready the one whose unit comes next; of `warm` ones the model is loaded already.

    >>> shares = {"a": 100, "b": 100, "spare": 0}
    >>> turn({"a": 200.0, "b": 0.0}, shares), turn({"a": 200.0, "b": 0.0}, shares, {"a"})
    ('b', 'a')
    >>> turn({"a": 400.0, "b": 0.0, "spare": 0.0}, shares, {"a", "spare"}), turn({"spare": 9e9}, shares)
    ('b', 'spare')
    """
    racing = _racing(levels, shares)
    lowest = min(racing.values())
    near = {grid: level for grid, level in racing.items() if grid in warm and level <= lowest + SWITCH_S}
    return _lowest(near or racing)


def slots(
    levels: Mapping[GridId, float], shares: Shares, unit_s: Mapping[GridId, float], count: int
) -> dict[GridId, int]:
    """How many of the next so many units are whose; `unit_s` is how long a unit of each grid takes.

    >>> slots({"a": 0.0, "b": 0.0}, {"a": 300, "b": 100}, {"a": 10.0, "b": 10.0}, 8)
    {'a': 6, 'b': 2}
    """
    planned, found = dict(_racing(levels, shares)), dict.fromkeys(levels, 0)
    for _ in range(count if planned else 0):
        grid = _lowest(planned)
        planned[grid] += cost(max(unit_s[grid], UNIT_LEAST_S), grid, shares)
        found[grid] += 1
    return found


def _racing(levels: Mapping[GridId, float], shares: Shares) -> Mapping[GridId, float]:
    """Without those that get only what others leave, unless nobody else is there."""
    return {grid: level for grid, level in levels.items() if shares[grid]} or levels


def _lowest(levels: Mapping[GridId, float]) -> GridId:
    return min(levels, key=lambda grid: (levels[grid], grid))
