"""Processes that never outlive whoever started them."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

GRACE_S = 8.0
_LAST_LINES = 15


class DemoError(Exception):
    """Something did not go as it must; the message is all that is shown."""


class Processes:
    """Background processes, each a group of its own with a log, ended together however the program ends.

    >>> with Processes() as processes:
    ...     _ = processes.start("sleeper", ["sleep", "60"], log=Path(os.devnull))
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    def __enter__(self) -> Processes:
        atexit.register(self.end_all)
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, _leave)
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()

    def start(
        self, name: str, command: list[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                # A Ctrl-C at the terminal reaches this program only, which then ends the others in order.
                start_new_session=True,
            )
        self._running[name] = (process, log)

    def check(self) -> None:
        """Raises DemoError with the last lines of the first one that has ended."""
        for name, (process, log) in self._running.items():
            if (status := process.poll()) is not None:
                raise DemoError(f"{name} ended with status {status}:\n{last_lines(log)}")

    def wait_for(self, path: Path, limit_s: float) -> None:
        """Until a file is there, all processes alive."""
        began_s = time.monotonic()
        while not path.exists():
            self.check()
            if time.monotonic() - began_s > limit_s:
                raise DemoError(f"{path.name} did not appear within {limit_s:.0f} s")
            time.sleep(0.05)

    def pid(self, name: str) -> int:
        return self._running[name][0].pid

    def end(self, *names: str) -> None:
        """Ask, wait a little, then insist; a process stays on the list until it is gone."""
        ending = [name for name in names if name in self._running]
        for name in ending:
            _signal(self._running[name][0], signal.SIGTERM)
        deadline_s = time.monotonic() + GRACE_S
        for name in ending:
            process, _ = self._running[name]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline_s - time.monotonic()))
            # Its group may hold a child that did not hear.
            _signal(process, signal.SIGKILL)
            process.wait()
            del self._running[name]

    def end_all(self) -> None:
        self.end(*reversed(list(self._running)))


def last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
