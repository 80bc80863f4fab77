"""Watches the machine with all its probes, and always has an answer: what was seen last, or why nothing was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

from memgrid.clock import Clock
from memgrid.errors import InvalidError
from memgrid.log import get_logger
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.probes.probe import Probe, Reading, Unseen, WatchedDevice
from memgrid_volunteer.owner.signals import DeviceSignals, Pause, Signals

STALE_PERIODS = 3
STALE_S = 5.0
"""A reading is too old after so many periods, and so long beside: its probe hangs."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a probe saw last, or why it saw nothing, and how long that took."""

    reading: Reading | None
    why_unseen: str = ""
    at_s: float
    took_s: float


class Watcher:
    """Every probe on its own period in a thread of its own; `signals` puts together what they have seen."""

    def __init__(
        self, probes: Sequence[Probe], clock: Clock, control: Control, devices: Sequence[WatchedDevice]
    ) -> None:
        self._probes = tuple(probes)
        self._clock = clock
        self._control = control
        self._devices = tuple(device.device_id for device in devices)
        self._sights: dict[str, Sight] = {}

    async def run(self) -> None:
        """Loop: look, until cancelled."""
        executor = ThreadPoolExecutor(max_workers=len(self._probes) or 1, thread_name_prefix="probe")
        try:
            async with asyncio.TaskGroup() as tasks:
                for probe in self._probes:
                    tasks.create_task(self._watch(probe, executor))
        finally:
            # A probe that hangs is not waited for.
            executor.shutdown(wait=False, cancel_futures=True)

    def look(self) -> None:
        """One reading of every probe, here and now; for whoever does not run."""
        for probe in self._probes:
            self._sights[probe.name] = self._read(probe)

    @property
    def sights(self) -> Mapping[str, Sight]:
        """Every probe that has looked, by name."""
        return dict(self._sights)

    @property
    def signals(self) -> Signals:
        """What is seen now; the owner's pauses are as fresh as the disk."""
        unseen: dict[str, str] = {}
        readings: list[Reading] = []
        for probe in self._probes:
            why = self._why_unseen(probe)
            sight = self._sights.get(probe.name)
            if why or sight is None or sight.reading is None:
                unseen[probe.name] = why
            else:
                readings.append(sight.reading)
        pauses, why = self._pauses()
        if why:
            unseen["control"] = why
        return merged(readings, self._devices, pauses, unseen)

    def _pauses(self) -> tuple[tuple[Pause, ...], str]:
        try:
            return self._control.pauses(self._clock.now()), ""
        except (InvalidError, OSError) as error:
            # Somebody may have said "pause" in it.
            return (Pause(),), str(error)

    def _why_unseen(self, probe: Probe) -> str:
        sight = self._sights.get(probe.name)
        if sight is None:
            return "has not looked yet"
        age_s = self._clock.monotonic_s() - sight.at_s
        if age_s > STALE_PERIODS * probe.period_s + STALE_S:
            return f"has not answered for {age_s:.0f} s"
        return sight.why_unseen

    async def _watch(self, probe: Probe, executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._sights[probe.name] = await loop.run_in_executor(executor, self._read, probe)
            await asyncio.sleep(probe.period_s)

    def _read(self, probe: Probe) -> Sight:
        begun_s = time.perf_counter()
        reading, why = None, ""
        try:
            reading = probe.read()
        except Unseen as unseen:
            why = str(unseen)
        except Exception as error:
            # One probe that stumbles over an odd machine must not blind the others, nor end the volunteer.
            why = f"{type(error).__name__}: {error}"
            if probe.name not in self._sights or self._sights[probe.name].why_unseen != why:
                log.warning("probe failed", probe=probe.name, exc_info=True)
        took_s = time.perf_counter() - begun_s
        return Sight(reading=reading, why_unseen=why, at_s=self._clock.monotonic_s(), took_s=took_s)


def merged(
    readings: Sequence[Reading], devices: Sequence[DeviceId], pauses: tuple[Pause, ...], unseen: dict[str, str]
) -> Signals:
    """Signals out of the parts that were seen; of a device that several probes look at, each gives what it knows.

    >>> hot: Reading = {"devices": {"cpu": DeviceSignals(temperature_c=71.0)}}
    >>> busy: Reading = {"devices": {"cpu": DeviceSignals(load_share=0.5)}, "foreign_load_share": 0.1}
    >>> merged([hot, busy], ["cpu"], (), {}).devices["cpu"].temperature_c
    71.0
    """
    seen: dict[DeviceId, DeviceSignals] = {device_id: DeviceSignals() for device_id in devices}
    rest: dict[str, Any] = {}
    for reading in readings:
        rest |= {name: value for name, value in reading.items() if name != "devices"}
        for device_id, part in reading.get("devices", {}).items():
            if device_id in seen:
                seen[device_id] = _over(seen[device_id], part)
    return Signals(devices=seen, pauses=pauses, unseen=unseen, **rest)


def _over(known: DeviceSignals, part: DeviceSignals) -> DeviceSignals:
    told = {each.name: getattr(part, each.name) for each in fields(part)}
    return replace(known, **{name: value for name, value in told.items() if value is not None})
