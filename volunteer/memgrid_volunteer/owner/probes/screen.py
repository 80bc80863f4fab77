"""Does a program fill the screen, a game or a film?"""

from __future__ import annotations

import os
from pathlib import Path

from jeepney import DBusAddress

from memgrid_volunteer.owner.probes.bus import Bus
from memgrid_volunteer.owner.probes.logind import Logind
from memgrid_volunteer.owner.probes.probe import Reading, Unseen
from memgrid_volunteer.owner.probes.x11 import X11

_DRM = Path("/sys/class/drm")
_GNOME = DBusAddress("/org/gnome/SessionManager", "org.gnome.SessionManager", "org.gnome.SessionManager")
_INHIBIT_IDLE = 8


class ScreenProbe:
    """X tells it. Under Wayland nobody may look, but what fills a screen mostly asks for it to stay on."""

    name = "screen"
    period_s = 1.0

    def __init__(
        self, x11: X11, logind: Logind | None = None, session_bus: Bus | None = None, *, drm: Path = _DRM
    ) -> None:
        self._x11 = x11
        self._logind = logind
        self._session_bus = session_bus
        self._drm = drm

    def read(self) -> Reading:
        is_wayland = bool(os.environ.get("WAYLAND_DISPLAY")) or os.environ.get("XDG_SESSION_TYPE") == "wayland"
        why = "under Wayland no program may look at the windows of others"
        if not is_wayland:
            try:
                return Reading(fullscreen_program=self._x11.fullscreen_program())
            except Unseen as unseen:
                why = f"X: {unseen}"
        if wakeful := self._keeps_screen_on():
            return Reading(fullscreen_program=wakeful)
        if not is_wayland and self._has_no_screen():
            return Reading(fullscreen_program="")
        raise Unseen(why)

    def _keeps_screen_on(self) -> str:
        """A program that asks for it, by the session's or the system's word."""
        if self._logind is not None:
            try:
                if inhibitors := self._logind.idle_inhibitors():
                    return inhibitors[0]
            except Unseen:
                pass
        if self._session_bus is not None:
            try:
                if self._session_bus.call(_GNOME, "IsInhibited", "u", (_INHIBIT_IDLE,)):
                    return "a program that keeps the screen on"
            except Unseen:
                pass
        return ""

    def _has_no_screen(self) -> bool:
        """No screen is plugged in, or nobody has a desktop on any."""
        if self._logind is not None:
            try:
                return not any(session.is_graphical for session in self._logind.sessions())
            except Unseen:
                pass
        return not any(_is_connected(path) for path in self._drm.glob("card*-*/status"))


def _is_connected(path: Path) -> bool:
    try:
        return path.read_text().strip() == "connected"
    except OSError:
        return True
