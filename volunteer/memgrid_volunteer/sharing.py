"""Shares at work: whose unit a free device gets, and how many units each grid is asked for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from memgrid.clock import Clock
from memgrid.errors import InvalidError
from memgrid_volunteer.desk import Stage, wanted
from memgrid_volunteer.grid_ids import GridId
from memgrid_volunteer.member import Member
from memgrid_volunteer.owner.files import read_whole, replace_text
from memgrid_volunteer.shares import Levels, Shares, charged, cost, fitted, slots, turn

SHARES_FILE = "shares.json"
_WRITE_EVERY_S = 30.0
_UNIT_S = 60.0
"""How long a unit takes of a grid that has given none."""


class Sharing:
    """What each grid has had is on disk after half a minute, so that a restart forgives little."""

    def __init__(self, folder: Path, members: Sequence[Member], clock: Clock) -> None:
        self._path = folder / SHARES_FILE
        self._members = {member.grid_id: member for member in members}
        self._clock = clock
        self._levels = fitted(_read(self._path), self._shares())
        self._written_s = clock.monotonic_s()

    @property
    def is_shared(self) -> bool:
        return len(self._members) > 1

    @property
    def held_units(self) -> int:
        return sum(len(member.desk) for member in self._members.values())

    def turn(self, ready: AbstractSet[GridId], warm: AbstractSet[GridId]) -> GridId:
        """Of grids with a unit that is ready, some of whose models a device has loaded, the next."""
        if len(ready) == 1:
            return next(iter(ready))
        shares = self._shares()
        return turn({grid: self._expected(grid, shares) for grid in ready}, shares, warm)

    def charge(self, member: Member, device_s: float) -> None:
        """A device has computed so long for a grid."""
        competing = {grid for grid, each in self._members.items() if len(each.desk)}
        self._levels = charged(
            self._levels,
            member.grid_id,
            device_s,
            shares=self._shares(),
            competing=competing,
            now_s=self._clock.now().timestamp(),
        )
        if self._clock.monotonic_s() - self._written_s >= _WRITE_EVERY_S:
            self.write()

    def wanted(self, member: Member, devices: int) -> int:
        """How many more units to ask this grid for: its part of what keeps so many devices busy.

        Grids without work are asked as if they had some, and take no place of the others'.
        """
        racing = [each for each in self._members.values() if each is member or each.has_work]
        held = [lease.offer.estimate_s for each in racing for lease in each.desk.all()]
        count = len(held) + wanted(len(held), sum(held), devices)
        shares, usual_s = self._shares(), sum(held) / len(held) if held else _UNIT_S
        levels = {each.grid_id: self._levels.of[each.grid_id] for each in racing}
        unit_s = {each.grid_id: _mean(each, usual_s) for each in racing}
        return max(0, slots(levels, shares, unit_s, count)[member.grid_id] - len(member.desk))

    def write(self) -> None:
        """Before the process ends. A full disk forgets the last units."""
        value = {"at_s": self._levels.at_s, "levels": dict(self._levels.of)}
        with contextlib.suppress(OSError):
            replace_text(self._path, json.dumps(value, indent=1), durable=False)
        self._written_s = self._clock.monotonic_s()

    def _shares(self) -> Shares:
        return {grid: member.share for grid, member in self._members.items()}

    def _expected(self, grid: GridId, shares: Shares) -> float:
        """Where a grid stands when the units that run are through, or others would all begin with the same one."""
        now_s = self._clock.monotonic_s()
        running = [held for held in self._members[grid].desk.all() if held.stage is Stage.RUNNING]
        ahead_s = sum(max(held.offer.estimate_s, now_s - held.began_s) for held in running)
        return self._levels.of[grid] + cost(ahead_s, grid, shares)


def _mean(member: Member, usual_s: float) -> float:
    estimates = [held.offer.estimate_s for held in member.desk.all()]
    return sum(estimates) / len(estimates) if estimates else usual_s


def _read(path: Path) -> Levels:
    """What the last run wrote; a file that is no such thing begins anew."""
    try:
        value = read_whole(path) or {}
        levels = {GridId(str(grid)): float(level) for grid, level in value.get("levels", {}).items()}
        return Levels(at_s=float(value.get("at_s", 0.0)), of=levels)
    except (InvalidError, OSError, ValueError, TypeError, AttributeError):
        return Levels(of={})
