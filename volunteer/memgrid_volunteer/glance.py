"""Glance at a volunteer from its home: whoever may read the folder sees how it stands, running or not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from memgrid.errors import InvalidError
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.status import VolunteerStatus
from memgrid_volunteer.view import View, view_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """One look at everything."""

    membership: Membership
    status: VolunteerStatus
    view: View
    pauses: tuple[Pause, ...]
    is_running: bool
    preset: str
    """Empty while nobody knows what the owner wants."""
    problems: tuple[str, ...]
    """What is wrong with files that the owner may put right, one line each."""


class Glancing:
    """Cheap enough for once a second: files that have not changed are not read again."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.control = Control(home.folder)
        self.preferences = PreferencesFile(home.folder)

    def glance(self, now: datetime) -> Glance:
        """Raises InvalidError when no grid has been joined."""
        membership = self.home.membership()
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
            membership=membership,
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
