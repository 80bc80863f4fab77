"""`memgrid volunteer top`: the page in a terminal, as it changes, with keys to pause and resume."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from rich.console import Console, Group
from rich.live import Live

from memgrid.clock import Clock
from memgrid_volunteer.done import DoneUnit
from memgrid_volunteer.glance import Glancing
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.page.asking import GridAsking, ask_the_grid
from memgrid_volunteer.page.credit import Span, credit_chart
from memgrid_volunteer.tiles import tiles
from memgrid_volunteer.top_frame import UNITS_SHOWN, frame

EVERY_S = 1.0
PAUSE_FOR = timedelta(hours=1)
KEYS = "p pause 1 h  P pause  r resume  q quit"


class Top:
    """Reads what lies in the home, like the page does; the volunteer need not run."""

    def __init__(self, home: Home, clock: Clock) -> None:
        self._glancing = Glancing(home)
        self._history = History(home.folder)
        self._asking = GridAsking(home, self._history, clock, ask_the_grid)
        self._clock = clock
        self._pressed = asyncio.Event()
        self._is_ending = False

    def frame(self, keys: str = "") -> Group:
        """What there is to see now. Raises InvalidError when no grid has been joined."""
        now = self._now()
        glance = self._glancing.glance(now)
        units: list[DoneUnit] = []
        grids = glance.grids(self._history, now)
        credit = None
        with contextlib.suppress(sqlite3.Error):
            units = self._history.units(limit=UNITS_SHOWN)
            credit = credit_chart(self._history, Span.MONTH, now)
        return frame(glance, tiles(glance, self._asking.asked), grids, units, credit, now, keys=keys)

    async def show(self, console: Console) -> None:
        """A frame a second, until q; at once after a key."""
        with _keys(self.press) as has_keys, Live(console=console, screen=True, auto_refresh=False) as live:
            while not self._is_ending:
                self._asking.look_at_standing()
                live.update(self.frame(KEYS if has_keys else ""), refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._pressed.wait()
                self._pressed.clear()

    def press(self, key: str) -> None:
        """Do what a key stands for; others mean nothing."""
        control, now = self._glancing.control, self._now()
        match key:
            case "p":
                control.pause(now, until=now + PAUSE_FOR)
            case "P":
                control.pause(now)
            case "r":
                control.resume(now)
            case "q":
                self._is_ending = True
        self._pressed.set()

    async def close(self) -> None:
        await self._asking.close()
        self._history.close()

    def _now(self) -> datetime:
        return self._clock.now().astimezone(LOCAL)


async def run_top(home: Home, clock: Clock, console: Console, *, once: bool) -> None:
    """Show it until q or Ctrl-C; once where nobody could follow. Raises InvalidError when no grid has been joined."""
    top = Top(home, clock)
    try:
        if once or not console.is_terminal:
            console.print(top.frame())
        else:
            await top.show(console)
    finally:
        await top.close()


@contextlib.contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[bool]:
    """Hear every key as it is pressed; False where a system or a pipe lets nobody hear."""
    try:
        import termios
        import tty
    except ImportError:  # no such terminals on this system: Ctrl-C ends it
        yield False
        return
    if not sys.stdin.isatty():
        yield False
        return
    handle, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(handle)
    tty.setcbreak(handle)
    loop.add_reader(handle, lambda: _hear(press))
    try:
        yield True
    finally:
        loop.remove_reader(handle)
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _hear(press: Callable[[str], None]) -> None:
    import os

    for key in os.read(sys.stdin.fileno(), 64).decode(errors="ignore"):
        press(key)
