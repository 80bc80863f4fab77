"""Input as the kernel hands it out: /dev/input, where this user may read it."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

from memgrid_volunteer.owner.probes.idle import Idle
from memgrid_volunteer.owner.probes.probe import Unseen

_EVENT = struct.Struct("llHHi")
_INPUT_TYPES = (1, 2, 3)
"""EV_KEY, EV_REL, EV_ABS: keys, mice and touchpads; not lids, clocks and lamps."""
_READ_BYTES = _EVENT.size * 64
_ACCELEROMETER_BIT = 1 << 6
_LOOK_AGAIN_S = 30.0


class EvdevIdle:
    """Reads events that others read too, and forgets all about them but the time."""

    name = "/dev/input"
    sees_everybody = True

    def __init__(self, folder: Path = Path("/dev/input"), facts: Path = Path("/sys/class/input")) -> None:
        self._folder = folder
        self._facts = facts
        self._open: dict[Path, int] = {}
        self._first_look_s: float | None = None
        self._last_input_s: float | None = None
        self._looked_s = -_LOOK_AGAIN_S

    def idle_s(self) -> Idle:
        """Raises Unseen."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_AGAIN_S or not self._open:
            self._look(now_s)
        self._first_look_s = now_s if self._first_look_s is None else self._first_look_s
        # Every device is emptied, or what waits in one would count again later.
        had_input = [self._had_input(path) for path in list(self._open)]
        if any(had_input):
            self._last_input_s = now_s
        if self._last_input_s is None:
            return Idle(seconds=now_s - self._first_look_s, is_since_input=False)
        return Idle(seconds=now_s - self._last_input_s)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        for path in list(self._open):
            self._forget(path)

    def _look(self, now_s: float) -> None:
        """Open what has been plugged in; raises Unseen when nothing can be opened."""
        self._looked_s = now_s
        paths = sorted(self._folder.glob("event*"))
        refused = False
        for path in paths:
            if path in self._open or self._is_accelerometer(path):
                continue
            try:
                self._open[path] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except PermissionError:
                refused = True
            except OSError:
                continue
        if not self._open:
            why = "this user may not read it (group input)" if refused else "no input devices"
            raise Unseen(why)

    def _is_accelerometer(self, path: Path) -> bool:
        try:
            words = (self._facts / path.name / "device" / "properties").read_text().split()
            return bool(int(words[-1], 16) & _ACCELEROMETER_BIT)
        except (OSError, ValueError, IndexError):
            return False

    def _had_input(self, path: Path) -> bool:
        had = False
        while True:
            try:
                content = os.read(self._open[path], _READ_BYTES)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    self._forget(path)
                return had
            whole = len(content) - len(content) % _EVENT.size
            had = had or any(event[2] in _INPUT_TYPES for event in _EVENT.iter_unpack(content[:whole]))
            if len(content) < _READ_BYTES:
                return had

    def _forget(self, path: Path) -> None:
        os.close(self._open.pop(path))
