"""What an X server tells: how long there was no input, and which program fills the screen."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from typing import Any

import psutil
from Xlib import X, Xatom
from Xlib.display import Display
from Xlib.error import ConnectionClosedError, DisplayError, XError
from Xlib.ext import screensaver

from memgrid_volunteer.owner.probes.idle import Idle
from memgrid_volunteer.owner.probes.probe import Unseen

CONNECT_LIMIT_S = 2.0
_LOCAL = re.compile(r"(?:unix)?:(\d+)(?:\.\d+)?")
_GONE = (ConnectionClosedError, XError, OSError, EOFError)


class X11:
    """One display, connected when it is first asked and again after it has gone; for one thread."""

    name = "X"
    sees_everybody = False

    def __init__(self, display_name: str | None = None) -> None:
        self._display_name = display_name
        self._display: Any = None

    def idle_s(self) -> Idle:
        """Raises Unseen; under Wayland always, for X then sees only what is typed into its own programs."""
        if os.environ.get("WAYLAND_DISPLAY") or os.environ.get("XDG_SESSION_TYPE") == "wayland":
            raise Unseen("under Wayland it sees only a part of what is typed")
        display = self._connected()
        try:
            if not display.has_extension(screensaver.extname):
                raise Unseen(f"the server has no {screensaver.extname}")
            return Idle(seconds=int(screensaver.query_info(display.screen().root).idle) / 1000)
        except _GONE as error:
            raise self._lost(error) from None

    def fullscreen_program(self) -> str:
        """The name of a program that fills a screen; "" when none does. Raises Unseen."""
        display = self._connected()
        try:
            return _fullscreen_program(display)
        except _GONE as error:
            raise self._lost(error) from None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            with contextlib.suppress(*_GONE):
                display.close()

    def _connected(self) -> Any:
        name = self._display_name or os.environ.get("DISPLAY", "")
        if not name:
            raise Unseen("no DISPLAY")
        if self._display is None:
            _check_local(name)
            try:
                self._display = Display(name)
            except (DisplayError, *_GONE) as error:
                raise Unseen(f"can't open display {name}: {error}") from None
        return self._display

    def _lost(self, error: Exception) -> Unseen:
        self.close()
        return Unseen(f"the server has gone: {error or type(error).__name__}")


def _check_local(name: str) -> None:
    """Raises Unseen unless a server of this machine listens; Xlib would go on to ask over the network."""
    found = _LOCAL.fullmatch(name)
    if found is None:
        raise Unseen(f"display {name} is another machine's")
    with socket.socket(socket.AF_UNIX) as attempt:
        attempt.settimeout(CONNECT_LIMIT_S)
        try:
            attempt.connect(f"/tmp/.X11-unix/X{found[1]}")
        except OSError as error:
            raise Unseen(f"can't open display {name}: {error.strerror or error}") from None


def _fullscreen_program(display: Any) -> str:
    root = display.screen().root
    full, hidden = (display.intern_atom(f"_NET_WM_STATE_{name}") for name in ("FULLSCREEN", "HIDDEN"))
    state = display.intern_atom("_NET_WM_STATE")
    windows = _values(root, display.intern_atom("_NET_CLIENT_LIST"), Xatom.WINDOW)
    windows += _values(root, display.intern_atom("_NET_ACTIVE_WINDOW"), Xatom.WINDOW)
    for window_id in dict.fromkeys(windows):
        window = display.create_resource_object("window", window_id)
        try:
            states = _values(window, state, Xatom.ATOM)
            if full in states and hidden not in states:
                return _program(display, window)
        except XError:
            # Windows may close while they are looked at.
            continue
    return ""


def _program(display: Any, window: Any) -> str:
    for pid in _values(window, display.intern_atom("_NET_WM_PID"), Xatom.CARDINAL):
        with contextlib.suppress(psutil.Error):
            return psutil.Process(pid).name()
    named = window.get_wm_class()
    return named[1] if named else "a program"


def _values(window: Any, name: int, kind: int) -> list[int]:
    found = window.get_full_property(name, kind)
    return [] if found is None else [int(value) for value in found.value if value != X.NONE]
