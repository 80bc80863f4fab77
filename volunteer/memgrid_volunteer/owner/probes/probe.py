"""What every probe is: a name, how often it looks, and one reading at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypedDict

from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.signals import DeviceSignals

OwnPids = Callable[[], frozenset[int]]
"""The processes that are ours: this one, its workers, and all they have started."""


class Unseen(Exception):  # noqa: N818 - what it is, not that something went wrong
    """A probe can't see what it is there for; the text says why, for the owner of the machine."""


class Reading(TypedDict, total=False):
    """The part of `Signals` that one probe has seen; the words are the same."""

    devices: dict[DeviceId, DeviceSignals]
    input_idle_s: float | None
    is_locked: bool | None
    foreign_load_share: float | None
    on_battery: bool | None
    battery_share: float | None
    is_metered: bool | None
    fullscreen_program: str | None
    programs: frozenset[str] | None
    disk_free_bytes: int | None
    month_bytes: int


class Probe(Protocol):
    """Read in a thread of its own, one reading at a time."""

    @property
    def name(self) -> str: ...

    @property
    def period_s(self) -> float:
        """How long to wait between two readings."""

    def read(self) -> Reading:
        """Raises Unseen; takes a few seconds at the worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedDevice:
    """A device to watch; `uuid` is a GPU's own, as the driver spells it ("GPU-…"), or empty."""

    device_id: DeviceId
    uuid: str = ""
