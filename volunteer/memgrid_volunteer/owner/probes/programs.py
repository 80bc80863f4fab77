"""Do programs run that want the machine for themselves?"""

from __future__ import annotations

from collections.abc import Callable

import psutil

from memgrid_volunteer.owner.probes.probe import Reading


class ProgramsProbe:
    """Looks for the names that the preferences have now; a name may have its `.exe`, or be in the command's path."""

    name = "programs"
    period_s = 2.0

    def __init__(self, wanted: Callable[[], tuple[str, ...]]) -> None:
        self._wanted = wanted

    def read(self) -> Reading:
        wanted = {_plain(name): name for name in self._wanted()}
        if not wanted:
            return Reading(programs=frozenset())
        running = {_plain(process.info["name"] or "") for process in psutil.process_iter(["name"])}
        return Reading(programs=frozenset(wanted[name] for name in running & wanted.keys()))


def _plain(name: str) -> str:
    """
    >>> _plain("Blender.exe")
    'blender'
    """
    return name.casefold().removesuffix(".exe")
