"""All the probes that make sense on this system."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from memgrid_volunteer.owner.probes.bus import Bus
from memgrid_volunteer.owner.probes.disk import DiskProbe
from memgrid_volunteer.owner.probes.gpu import GpuProbe
from memgrid_volunteer.owner.probes.idle import IdleProbe
from memgrid_volunteer.owner.probes.idle_desktop import MutterIdle, ScreenSaverIdle
from memgrid_volunteer.owner.probes.idle_files import EvdevIdle
from memgrid_volunteer.owner.probes.idle_mac import MacIdle
from memgrid_volunteer.owner.probes.idle_windows import WindowsIdle, WindowsScreenProbe
from memgrid_volunteer.owner.probes.load import LoadProbe
from memgrid_volunteer.owner.probes.logind import Logind
from memgrid_volunteer.owner.probes.network import MeteredProbe
from memgrid_volunteer.owner.probes.nvml import nvml_here
from memgrid_volunteer.owner.probes.power import PowerProbe
from memgrid_volunteer.owner.probes.probe import OwnPids, Probe, WatchedDevice
from memgrid_volunteer.owner.probes.programs import ProgramsProbe
from memgrid_volunteer.owner.probes.screen import ScreenProbe
from memgrid_volunteer.owner.probes.thermal import ThermalProbe
from memgrid_volunteer.owner.probes.x11 import X11


def probes_here(
    *,
    folder: Path,
    devices: Sequence[WatchedDevice],
    own_pids: OwnPids,
    programs: Callable[[], tuple[str, ...]],
) -> tuple[Probe, ...]:
    """`folder`: where the volunteer keeps its files; `programs`: the exclusive ones, as preferences have them now."""
    return (
        idle_here(),
        screen_here(),
        GpuProbe(nvml_here(), devices, own_pids),
        LoadProbe(own_pids),
        PowerProbe(),
        ThermalProbe(),
        ProgramsProbe(programs),
        MeteredProbe(Bus("SYSTEM")),
        DiskProbe(folder),
    )


def idle_here() -> Probe:
    if sys.platform == "win32":
        return IdleProbe([WindowsIdle()], keyboards=None)
    if sys.platform == "darwin":
        return IdleProbe([MacIdle()], keyboards=None)
    # Probes are read at the same time: none shares a bus or a display with another.
    session = Bus("SESSION")
    return IdleProbe([X11(), MutterIdle(session), ScreenSaverIdle(session), EvdevIdle()], Logind(Bus("SYSTEM")))


def screen_here() -> Probe:
    if sys.platform == "win32":
        return WindowsScreenProbe()
    return ScreenProbe(X11(), Logind(Bus("SYSTEM")), Bus("SESSION"))
