"""Tell systemd how this process is: ready, what it does, and that it is alive. Elsewhere, nothing happens.

Source: systemd's sd_notify(3) and sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping

_SOCKET_VARIABLE = "NOTIFY_SOCKET"
_TEXT_CHARS_MAX = 200
_ALIVE_SHARE = 3
"""Said so many times in each period of the watchdog: one late turn must not end anybody."""


class Notifier:
    """One process's line to its service manager; without a manager everything is a no-op."""

    def __init__(self, environment: Mapping[str, str], *, pid: int | None = None) -> None:
        self._address = environment.get(_SOCKET_VARIABLE, "")
        self._watchdog_s = _watchdog_s(environment, os.getpid() if pid is None else pid)
        self._said_alive_s = -1e9

    @property
    def is_managed(self) -> bool:
        """Whether somebody listens."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float:
        """How often at least to say that this process is alive; 0: nobody waits for it."""
        return self._watchdog_s

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        line = " ".join(text.split())[:_TEXT_CHARS_MAX]
        self._send(f"STATUS={line}")

    def alive(self) -> None:
        """To be called from the loop that must turn, as often as it likes: sent when it is due."""
        now_s = time.monotonic()  # the watchdog's clock is the machine's
        if self._watchdog_s and now_s - self._said_alive_s >= self._watchdog_s / _ALIVE_SHARE:
            self._said_alive_s = now_s
            self._send("WATCHDOG=1")

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """Inside, the event loop's turning is enough: waiting for a worker or a grid has limits of its own."""

        async def feed() -> None:
            while True:
                self.alive()
                await asyncio.sleep(max(self._watchdog_s, 1.0) / _ALIVE_SHARE)

        feeding = asyncio.create_task(feed())
        try:
            yield
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    def _send(self, line: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        # A manager that has gone, or is busy, is no reason to stop computing.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(line.encode(), address)


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float:
    meant = environment.get("WATCHDOG_PID", "")
    period = environment.get("WATCHDOG_USEC", "")
    if not period.isdigit() or (meant and meant != str(pid)):
        return 0.0
    return int(period) / 1e6


_of_this_process: Notifier | None = None


def notifier() -> Notifier:
    """That of this process: made at the first call, from its environment."""
    global _of_this_process
    if _of_this_process is None:
        _of_this_process = Notifier(os.environ)
    return _of_this_process


def ready() -> None:
    notifier().ready()


def status(text: str) -> None:
    notifier().status(text)


def alive() -> None:
    notifier().alive()
