"""What holds right now: probes, preferences, pauses and the owner policy, put together at every look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memgrid.clock import Clock
from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.devices import NamedDevice, used
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Action, Decision
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.owner.policy import Former, decide
from memgrid_volunteer.owner.preferences import Preferences
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.signals import Signals
from memgrid_volunteer.owner.watching import Watcher

OWNER_CHECK_S = 0.25
"""How often to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruled:
    """What each device may do, and what that was decided from."""

    decisions: Mapping[DeviceId, Decision]
    signals: Signals
    preferences: Preferences


class Ruling:
    """Look as often as you like; what is wrong with the preferences is told once."""

    def __init__(
        self,
        *,
        watcher: Watcher,
        file: PreferencesFile,
        devices: Sequence[NamedDevice],
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        self.watcher = watcher
        self._file = file
        self._devices = tuple(devices)
        self._clock = clock
        self._tell = tell
        self._former = Former()
        self._told: tuple[str, ...] = ()

    def look(self) -> Ruled:
        """Raises InvalidError when the preferences have errors and never were good: nobody knows what is wanted."""
        preferences = self._file.current()
        self._tell_problems(self._file.problems)
        signals = self.watcher.signals
        now = self._clock.now().astimezone(LOCAL)
        decisions, self._former = decide(signals, preferences, now, self._former)
        wanted = used(self._devices, preferences)
        spare = {device_id: _SPARE for device_id in decisions if device_id not in wanted}
        return Ruled(decisions=decisions | spare, signals=signals, preferences=preferences)

    def _tell_problems(self, problems: tuple[str, ...]) -> None:
        if problems != self._told:
            for line in problems:
                self._tell(f"{line}; the last good preferences hold")
            if not problems:
                self._tell("the preferences are good again")
            self._told = problems


_SPARE = Decision(
    action=Action.PAUSE_RELEASE,
    duty=0.0,
    reason=Reason(code=ReasonCode.DEVICE_DISABLED, text="the GPUs compute here; devices.cpu.enabled = true adds it"),
    preference="devices.cpu.enabled",
)
