"""Input as desktops tell it over the session's bus: GNOME to the millisecond, KDE and others to the second."""

from __future__ import annotations

from jeepney import DBusAddress

from memgrid_volunteer.owner.probes.bus import Bus
from memgrid_volunteer.owner.probes.idle import Idle

_MUTTER = DBusAddress(
    "/org/gnome/Mutter/IdleMonitor/Core", "org.gnome.Mutter.IdleMonitor", "org.gnome.Mutter.IdleMonitor"
)
_SCREEN_SAVER = DBusAddress("/ScreenSaver", "org.freedesktop.ScreenSaver", "org.freedesktop.ScreenSaver")


class MutterIdle:
    """GNOME's compositor, under X and Wayland."""

    name = "GNOME"
    sees_everybody = False

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def idle_s(self) -> Idle:
        return Idle(seconds=int(self._bus.call(_MUTTER, "GetIdletime")) / 1000)


class ScreenSaverIdle:
    """KDE's, and of others who speak the same."""

    name = "KDE"
    sees_everybody = False

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def idle_s(self) -> Idle:
        return Idle(seconds=int(self._bus.call(_SCREEN_SAVER, "GetSessionIdleTime")) / 1000)
