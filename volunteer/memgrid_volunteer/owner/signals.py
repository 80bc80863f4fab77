"""What was seen of the machine and its owner at one moment; None wherever it can't be seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from memgrid_volunteer.kinds.job import DeviceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The owner's own word: `device_id` None is all devices; `until` None is until it is taken back."""

    device_id: DeviceId | None = None
    until: datetime | None = None
    is_until_restart: bool = False


def holds(pause: Pause, device_id: DeviceId) -> bool:
    """Whether a pause is about a device.

    >>> holds(Pause(), "cuda:0"), holds(Pause(device_id="cuda:1"), "cuda:0")
    (True, False)
    """
    return pause.device_id is None or pause.device_id == device_id


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSignals:
    """One GPU, or the CPU as a whole. What our own worker uses counts as nobody else's."""

    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    foreign_memory_bytes: int | None = None
    """Device memory that other processes hold."""
    foreign_processes: tuple[str, ...] | None = None
    """Names of other processes that compute on it; () when there are none."""
    load_share: float | None = None
    """How busy it is with anything, 0 … 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """All that the owner policy looks at."""

    devices: dict[DeviceId, DeviceSignals]
    pauses: tuple[Pause, ...] = ()
    input_idle_s: float | None = None
    """Since the last key or mouse movement."""
    is_locked: bool | None = None
    foreign_load_share: float | None = None
    """How busy the CPU is with what is not ours, 0 … 1 of all cores."""
    on_battery: bool | None = None
    battery_share: float | None = None
    is_metered: bool | None = None
    fullscreen_program: str | None = None
    """The program that fills a screen; "" when there is none."""
    programs: frozenset[str] | None = None
    """Names of the running programs that the preferences name as exclusive."""
    disk_free_bytes: int | None = None
    month_bytes: int = 0
    """Sent and received since the month began."""
    unseen: dict[str, str] = field(default_factory=dict)
    """Probes that don't work here, each with why: "idle" -> "no desktop session, no /dev/input"."""
