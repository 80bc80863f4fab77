"""The volunteer's heart: ask, fetch, run, report, again; and stop at once when the owner says so.

The coordinator is told everything by `Sync`; whatever it has not confirmed is said again, so neither a lost answer
nor a restart on either side loses work. The outbox on disk is the memory, this process only its reader.
"""

from __future__ import annotations

import asyncio

from memgrid.clock import Clock
from memgrid.units import Reason, ReasonCode
from memgrid_volunteer.correspondence import Correspondence
from memgrid_volunteer.deliveries import Deliveries
from memgrid_volunteer.desk import Desk
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.home import Home
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.workbench import Workbench

OWNER_CHECK_S = 0.25
GOODBYE_LIMIT_S = 5.0


class Agent:
    """Runs until told to stop, or until `limits.max_units` are through; then gives back what it holds."""

    def __init__(
        self,
        *,
        home: Home,
        correspondence: Correspondence,
        workbench: Workbench,
        deliveries: Deliveries,
        desk: Desk,
        outbox: Outbox,
        diary: Diary,
        clock: Clock,
        news: asyncio.Event,
        limits: Limits,
    ) -> None:
        self._home = home
        self._control = Control(home.folder)
        self._correspondence = correspondence
        self._workbench = workbench
        self._deliveries = deliveries
        self._desk = desk
        self._outbox = outbox
        self._diary = diary
        self._clock = clock
        self._news = news
        self._limits = limits
        self._stopped = asyncio.Event()
        self._settling_since_s: float | None = None

    def stop(self) -> None:
        """End `run` soon; safe to call from a signal handler."""
        self._stopped.set()

    async def run(self) -> None:
        """Raises UnknownHostError, UntrustedGridError or BadSignatureError when only the owner can help."""
        loops = (
            self._workbench.prepare_offers(),
            self._workbench.run_units(),
            self._deliveries.deliver(),
            self._correspondence.correspond(),
            self._watch(),
        )
        tasks = [asyncio.create_task(loop) for loop in loops]
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            done, _ = await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        finally:
            for task in (stopped, *tasks):
                task.cancel()
            await asyncio.gather(stopped, *tasks, return_exceptions=True)
            self._desk.give_all_back(Reason(code=ReasonCode.LEAVING, text="the volunteer has stopped"))
            await self._workbench.stop()
            await self._correspondence.say_goodbye(GOODBYE_LIMIT_S)
            self._diary.stands("stopped")

    async def _watch(self) -> None:
        """Loop: look at what the owner wants, and whether this run is through."""
        while True:
            reason = self._owners_pause()
            if reason != self._correspondence.paused:
                await self._obey(reason)
            if self._is_through():
                self._stopped.set()
            await asyncio.sleep(OWNER_CHECK_S)

    def _owners_pause(self) -> Reason | None:
        if all(pause.device_id is not None for pause in self._control.pauses(self._clock.now())):
            return None
        return Reason(code=ReasonCode.OWNER_PAUSED, text="the owner of the machine has paused it")

    async def _obey(self, reason: Reason | None) -> None:
        self._correspondence.paused = reason
        if reason is not None:
            self._desk.give_all_back(reason)
            await self._workbench.stop()
        self._diary.stands("idle" if reason is None else "paused")
        self._news.set()

    def _is_through(self) -> bool:
        limit = self._limits.max_units
        if limit is None or self._workbench.units_finished < limit or len(self._desk) or self._desk.released():
            return False
        if self._outbox.is_empty:
            return True
        now_s = self._clock.monotonic_s()
        self._settling_since_s = self._settling_since_s or now_s
        if now_s - self._settling_since_s < self._limits.settle_limit_s or not self._deliveries.is_idle:
            return False
        self._diary.note(f"{len(self._outbox)} verdicts are still to come; the next run will ask for them")
        return True
