"""What a rule looks at and what it may find; and who is at the machine, as rules ask it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from memgrid.units import ReasonCode
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Action
from memgrid_volunteer.owner.hysteresis import Latch
from memgrid_volunteer.owner.preferences import CPU, DevicePreferences, InUse, Preferences
from memgrid_volunteer.owner.signals import DeviceSignals, Pause, Signals, holds

KNOWN_IDLE_S = 60.0
"""What `idle_minutes = 0` takes for idle where a rule has to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a rule looks at: one device at one moment."""

    device_id: DeviceId
    device: DeviceSignals
    signals: Signals
    preferences: Preferences
    now: datetime

    @property
    def is_gpu(self) -> bool:
        return self.device_id != CPU

    @property
    def own(self) -> DevicePreferences:
        return self.preferences.device(self.device_id)

    @property
    def pauses(self) -> tuple[Pause, ...]:
        return tuple(pause for pause in self.signals.pauses if holds(pause, self.device_id))

    def key(self, name: str) -> str:
        """A preference of this device, as the owner writes it."""
        device = f'"{self.device_id}"' if ":" in self.device_id else self.device_id
        return f"devices.{device}.{name}"

    def why_unseen(self, probe: str) -> str:
        why = self.signals.unseen.get(probe, "")
        return f" ({why})" if why else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What stands against computing; `text` goes on after "paused: "."""

    action: Action
    code: ReasonCode
    text: str
    preference: str = ""
    until: datetime | None = None
    rise_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`look` is told how its finding has held so far, for margins; it holds on for `fall_s` after it is gone."""

    name: str
    look: Callable[[View, Latch], Finding | None]
    fall_s: float = 0.0


def use_of(view: View) -> InUse:
    when = view.preferences.when
    return when.gpu_while_in_use if view.is_gpu else when.while_in_use


def is_idle(view: View) -> bool:
    """Nobody is at the machine, or nobody cares."""
    idle_s = view.preferences.when.idle_minutes * 60
    return idle_s == 0 or _is_away(view.signals, idle_s)


def is_known_idle(view: View) -> bool:
    """Nobody is at the machine, and that was seen."""
    return _is_away(view.signals, max(view.preferences.when.idle_minutes * 60, KNOWN_IDLE_S))


def in_use_text(view: View) -> tuple[str, datetime | None]:
    """In words, and when it will be over if nobody touches anything."""
    seen_s = view.signals.input_idle_s
    if seen_s is None:
        return f"nobody can tell whether somebody is at the machine{view.why_unseen('idle')}", None
    minutes = view.preferences.when.idle_minutes
    until = view.now + timedelta(seconds=max(minutes * 60 - seen_s, 0.0))
    return f"somebody is at the machine, and will have left after {minutes:g} min without input", until


def _is_away(signals: Signals, idle_s: float) -> bool:
    return signals.is_locked is True or (signals.input_idle_s is not None and signals.input_idle_s >= idle_s)
