"""One look at everything, for whoever asks while nothing runs or beside what does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from memgrid.clock import SystemClock
from memgrid_volunteer.home import Home
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.owner.policy import Former, decide
from memgrid_volunteer.owner.preferences import CPU
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.probes.here import probes_here
from memgrid_volunteer.owner.probes.nvml import nvml_here
from memgrid_volunteer.owner.probes.ours import family_of
from memgrid_volunteer.owner.probes.probe import WatchedDevice
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.owner.traffic import Traffic
from memgrid_volunteer.owner.watching import Sight, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen, and what follows from it when nothing was decided before."""

    now: datetime
    sights: Mapping[str, Sight]
    decisions: Mapping[DeviceId, Decision]
    pauses: Sequence[Pause]
    problems: Sequence[str]


def look_once(home: Home) -> Look:
    """Raises InvalidError when the preferences have errors and never were good."""
    clock = SystemClock()
    file = PreferencesFile(home.folder)
    preferences = file.current()
    pid = int(home.status().get("pid", 0))
    devices = devices_here()
    probes = probes_here(
        folder=home.folder if home.folder.exists() else home.folder.parent,
        devices=devices,
        own_pids=lambda: family_of(os.getpid()) | (family_of(pid) if pid else frozenset()),
        programs=lambda: preferences.when.exclusive_programs,
    )
    watcher = Watcher((*probes, Traffic(home.folder, clock)), clock, Control(home.folder), devices)
    watcher.look()
    now, signals = clock.now().astimezone(LOCAL), watcher.signals
    decisions, _ = decide(signals, preferences, now, Former())
    return Look(now=now, sights=watcher.sights, decisions=decisions, pauses=signals.pauses, problems=file.problems)


def devices_here() -> tuple[WatchedDevice, ...]:
    """The processor, and the GPUs that the driver knows, in its own order; what computes may count them otherwise."""
    nvml = nvml_here()
    try:
        uuids = [nvml.uuid(index) for index in range(nvml.count())]
    except OSError:
        uuids = []
    gpus = (WatchedDevice(device_id=f"cuda:{index}", uuid=uuid) for index, uuid in enumerate(uuids))
    return (*gpus, WatchedDevice(device_id=CPU))
