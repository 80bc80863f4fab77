"""How hot the processor is, and what it draws."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from memgrid_volunteer.owner.preferences import CPU
from memgrid_volunteer.owner.probes.probe import Reading, Unseen
from memgrid_volunteer.owner.signals import DeviceSignals

_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""In the order of trust: those inside the processor first, the board's last."""
_RAPL = Path("/sys/class/powercap")


class ThermalProbe:
    """The hottest sensor of the processor; its power where the kernel lets this user read the counter of energy."""

    name = "thermal"
    period_s = 2.0

    def __init__(self, powercap: Path = _RAPL) -> None:
        self._powercap = powercap
        self._before: tuple[float, int] | None = None

    def read(self) -> Reading:
        temperature_c, power_w = self._temperature_c(), self._power_w()
        if temperature_c is None and power_w is None:
            raise Unseen("no sensor of the processor can be read")
        return Reading(devices={CPU: DeviceSignals(temperature_c=temperature_c, power_w=power_w)})

    def _temperature_c(self) -> float | None:
        look = getattr(psutil, "sensors_temperatures", None)
        found = {} if look is None else look()
        for name in _PROCESSOR_SENSORS:
            seen = [sensor.current for sensor in found.get(name, ()) if sensor.current and sensor.current > 0]
            if seen:
                return float(max(seen))
        return None

    def _power_w(self) -> float | None:
        """The average since the last reading, over all packages."""
        packages = sorted(self._powercap.glob("intel-rapl:?"))
        try:
            energy_uj = sum(int((package / "energy_uj").read_text()) for package in packages)
        except (OSError, ValueError):
            return None
        if not packages:
            return None
        now_s = time.monotonic()
        before, self._before = self._before, (now_s, energy_uj)
        # The counter starts again now and then: one reading is left out.
        if before is None or now_s <= before[0] or energy_uj < before[1]:
            return None
        return (energy_uj - before[1]) / 1e6 / (now_s - before[0])
