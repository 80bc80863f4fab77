"""Input and full screens as Windows tells them."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from memgrid_volunteer.owner.probes.idle import Idle
from memgrid_volunteer.owner.probes.probe import Reading, Unseen

_TICKS = 1 << 32
_BUSY, _FULL_SCREEN, _PRESENTATION = 2, 3, 4


class _LastInput(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("ticks", ctypes.c_uint))


class WindowsIdle:
    """The input of the login that asks; a service of the system sees none."""

    name = "Windows"
    sees_everybody = False

    def idle_s(self) -> Idle:
        """Raises Unseen."""
        windll = _windll()
        last = _LastInput(size=ctypes.sizeof(_LastInput))
        if not windll.user32.GetLastInputInfo(ctypes.byref(last)):
            raise Unseen("GetLastInputInfo says nothing")
        return Idle(seconds=ticks_between(last.ticks, windll.kernel32.GetTickCount()) / 1000)


class WindowsScreenProbe:
    """Windows itself knows when not to disturb."""

    name = "screen"
    period_s = 1.0

    def read(self) -> Reading:
        state = ctypes.c_int()
        if _windll().shell32.SHQueryUserNotificationState(ctypes.byref(state)) != 0:
            raise Unseen("SHQueryUserNotificationState says nothing")
        is_full = state.value in (_BUSY, _FULL_SCREEN, _PRESENTATION)
        return Reading(fullscreen_program="a program in full screen" if is_full else "")


def ticks_between(before: int, now: int) -> int:
    """Milliseconds between two readings of a counter that starts again every 49.7 days.

    >>> ticks_between(2**32 - 1000, 500)
    1500
    """
    return (now - before) % _TICKS


def _windll() -> Any:
    if sys.platform != "win32":
        raise Unseen("this is not Windows")
    return ctypes.windll
