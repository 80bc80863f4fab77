"""Input as macOS tells it."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from memgrid_volunteer.owner.probes.idle import Idle
from memgrid_volunteer.owner.probes.probe import Unseen

_FRAMEWORK = "/System/Library/Frameworks/ApplicationServices.framework/ApplicationServices"
_HID_SYSTEM_STATE = 1
_ANY_INPUT = 0xFFFFFFFF


class MacIdle:
    """Keyboard, mouse and tablet, whoever is logged in."""

    name = "macOS"
    sees_everybody = True

    def __init__(self) -> None:
        self._since: Any = None

    def idle_s(self) -> Idle:
        """Raises Unseen."""
        if sys.platform != "darwin":
            raise Unseen("this is not macOS")
        if self._since is None:
            try:
                self._since = ctypes.CDLL(_FRAMEWORK).CGEventSourceSecondsSinceLastEventType
            except (OSError, AttributeError) as error:
                raise Unseen(f"ApplicationServices: {error}") from None
            self._since.restype = ctypes.c_double
            self._since.argtypes = (ctypes.c_int, ctypes.c_uint32)
        return Idle(seconds=float(self._since(_HID_SYSTEM_STATE, _ANY_INPUT)))
