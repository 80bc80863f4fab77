"""Glance at a volunteer from its home: whoever may read the folder sees how it stands, running or not."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from memgrid.errors import InvalidError
from memgrid_volunteer.grid_view import LATELY, GridView, grid_views
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.status import VolunteerStatus
from memgrid_volunteer.view import View, view_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """One look at everything."""

    memberships: tuple[Membership, ...]
    """At least one, in the order of the home."""
    status: VolunteerStatus
    view: View
    pauses: tuple[Pause, ...]
    is_running: bool
    preset: str
    """Empty while nobody knows what the owner wants."""
    problems: tuple[str, ...]
    """What is wrong with files that the owner may put right, one line each."""

    @property
    def label(self) -> str:
        """What this machine is called where it first joined."""
        return self.memberships[0].label

    def grids(self, history: History, now: datetime) -> tuple[GridView, ...]:
        """Each grid in words, with what it got lately as far as the disk tells."""
        computed_s: Mapping[str, float] = {}
        with contextlib.suppress(sqlite3.Error):
            computed_s = history.computed_s(now - LATELY)
        return grid_views(self.memberships, self.status, computed_s, is_running=self.is_running)


class Glancing:
    """Cheap enough for once a second: files that have not changed are not read again."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.control = Control(home.folder)
        self.preferences = PreferencesFile(home.folder)

    def glance(self, now: datetime) -> Glance:
        """Raises InvalidError when no grid has been joined."""
        memberships = tuple(place.membership() for place in self.home.joined())
        problems: list[str] = []
        status = _status(self.home, problems)
        try:
            pauses = self.control.pauses(now)
        except InvalidError as error:
            pauses, problems = (), [*problems, str(error)]
        try:
            preset: str = self.preferences.current().preset
            problems += self.preferences.problems
        except InvalidError as error:
            preset, problems = "", [*problems, *str(error).splitlines()]
        # Who has stopped in good order is believed; the lock is asked only about the others.
        is_running = status.state != "stopped" and self.home.is_running
        return Glance(
            memberships=memberships,
            status=status,
            view=view_of(status, pauses, now, is_running=is_running),
            pauses=pauses,
            is_running=is_running,
            preset=preset,
            problems=tuple(problems),
        )


def _status(home: Home, problems: list[str]) -> VolunteerStatus:
    try:
        return VolunteerStatus.from_json(home.status())
    except (InvalidError, ValueError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"status.json can't be read: {error}")
        return VolunteerStatus()
