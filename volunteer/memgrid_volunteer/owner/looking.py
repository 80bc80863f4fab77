"""One look at everything, for whoever asks while nothing runs or beside what does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from memgrid.clock import SystemClock
from memgrid.units import DeviceFacts
from memgrid_volunteer.devices import known_names, named, used
from memgrid_volunteer.home import Home
from memgrid_volunteer.kinds.job import DeviceId, WorkerDevice
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
    found = named(devices_here(), known_names(home.folder))
    computing = used(found, preferences)
    devices = [
        WatchedDevice(device_id=device.device_id, uuid=device.uuid)
        for device in found
        if device.device_id in computing
    ]
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


def devices_here() -> tuple[WorkerDevice, ...]:
    """The processor, and the GPUs that the driver knows; what torch can use of them only a worker can say."""
    nvml = nvml_here()
    try:
        gpus = [_gpu(index, nvml.uuid(index)) for index in range(nvml.count())]
    except OSError:
        gpus = []
    return (*gpus, WorkerDevice(device_id=CPU, uuid="", facts=_facts(CPU)))


def _gpu(index: int, uuid: str) -> WorkerDevice:
    return WorkerDevice(device_id=f"cuda:{index}", uuid=uuid, facts=_facts("cuda"))


def _facts(kind: str) -> DeviceFacts:
    return DeviceFacts(kind=kind, name="", memory_bytes=0, numerics_class="")
