"""The volunteer's heart: ask, fetch, run, report, again; and stop at once when the owner says so.

The coordinator is told everything by `Sync`; whatever it has not confirmed is said again, so neither a lost answer
nor a restart on either side loses work. The outbox on disk is the memory, this process only its reader.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from memgrid.clock import Clock
from memgrid.units import NO_WISHES, Reason, ReasonCode
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.correspondence import Correspondence
from memgrid_volunteer.deliveries import Deliveries
from memgrid_volunteer.desk import Desk
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.sparing import transfers_held
from memgrid_volunteer.ruling import Ruled, Ruling
from memgrid_volunteer.service import notify
from memgrid_volunteer.taking import Situation, standing, why_nothing_is_taken, wishes_of
from memgrid_volunteer.timekeeping import Timekeeper, jump_text
from memgrid_volunteer.travelling import Travelling
from memgrid_volunteer.workbench import Workbench

OWNER_CHECK_S = 0.25
GOODBYE_LIMIT_S = 5.0


class Agent:
    """Runs until told to stop, or until `limits.max_units` are through; then gives back what it holds."""

    def __init__(
        self,
        *,
        ruling: Ruling,
        correspondence: Correspondence,
        workbench: Workbench,
        deliveries: Deliveries,
        travelling: Travelling,
        desk: Desk,
        outbox: Outbox,
        cache: BlobCache,
        budget: Budget,
        diary: Diary,
        clock: Clock,
        news: asyncio.Event,
        limits: Limits,
    ) -> None:
        self._ruling = ruling
        self._correspondence = correspondence
        self._workbench = workbench
        self._deliveries = deliveries
        self._travelling = travelling
        self._desk = desk
        self._outbox = outbox
        self._cache = cache
        self._budget = budget
        self._diary = diary
        self._clock = clock
        self._news = news
        self._limits = limits
        self._timekeeper = Timekeeper()
        self._stopped = asyncio.Event()
        self._settling_since_s: float | None = None
        self._stands: tuple[str, Reason | None] | None = None

    def stop(self) -> None:
        """End `run` soon; safe to call from a signal handler."""
        self._stopped.set()

    async def run(self) -> None:
        """Raises what only the owner can mend: a grid that knows us not, has another key, or another of us."""
        await asyncio.to_thread(self._ruling.watcher.look)
        loops = (
            self._ruling.watcher.run(),
            self._workbench.preparing.prepare_offers(),
            self._workbench.run_units(),
            self._deliveries.deliver(),
            self._travelling.run(),
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
            await self._workbench.stop()
            self._desk.give_all_back(Reason(code=ReasonCode.LEAVING, text="the volunteer has stopped"))
            self._workbench.put_aside()
            await self._correspondence.say_goodbye(GOODBYE_LIMIT_S)
            self._write_traffic()
            self._diary.stands("stopped")

    def _write_traffic(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: the month's last megabytes are forgotten
            self._budget.traffic.write()

    async def _watch(self) -> None:
        """Loop: look at what the owner wants, at how this machine stands, and whether this run is through."""
        while True:
            self._look_at_the_clocks()
            await self._obey(self._ruling.look())
            if self._is_through():
                self._stopped.set()
            # Here and nowhere else: a service manager is to hear of it when this loop no longer turns.
            notify.alive()
            await asyncio.sleep(OWNER_CHECK_S)

    def _look_at_the_clocks(self) -> None:
        jumped_s = self._timekeeper.jumped_s(self._clock.now(), self._clock.monotonic_s())
        if jumped_s:
            self._diary.note(jump_text(jumped_s))
            self._correspondence.begin_anew()

    async def _obey(self, ruled: Ruled) -> None:
        """Devices first: whoever sits at this machine waits for them, nobody for the rest."""
        decisions = self._workbench.ruled(ruled.decisions)
        await self._workbench.obey(decisions)
        self._diary.decided(decisions, ruled.signals)
        await self._allow(ruled)
        situation = self._situation(decisions, ruled)
        held_back = why_nothing_is_taken(situation)
        if (held_back is None) != (self._correspondence.held_back is None):
            self._news.set()
        self._correspondence.held_back = held_back
        self._tell(*standing(situation))

    async def _allow(self, ruled: Ruled) -> None:
        """What preferences say of memory, network, disk and work, from now on."""
        preferences = ruled.preferences
        await self._workbench.allow(preferences)
        self._budget.allow(preferences.network)
        self._budget.spared = transfers_held(ruled.signals, preferences)
        limit_bytes = self._limits.cache_bytes
        if limit_bytes is None:
            limit_bytes = int(float(preferences.disk.cache_gb) * 1e9)
        self._cache.allow(limit_bytes=limit_bytes, reserve_bytes=int(float(preferences.disk.free_min_gb) * 1e9))
        wishes = wishes_of(preferences.work) or NO_WISHES
        if wishes != self._correspondence.wishes:
            self._correspondence.wishes = wishes
            await self._workbench.give_back_refused(preferences.work)
            self._news.set()

    def _situation(self, decisions: Mapping[DeviceId, Decision], ruled: Ruled) -> Situation:
        return Situation(
            decisions=decisions,
            network_spared=self._budget.spared,
            rest=self._workbench.preparing.rest_reason,
            data_away=self._workbench.preparing.data_away,
            outbox_is_full=self._outbox.size_bytes() > self._limits.outbox_bytes,
            wishes=wishes_of(ruled.preferences.work),
            grid_away=self._correspondence.grid_away,
            is_computing=self._workbench.is_computing,
            holds_units=len(self._desk) > 0,
            grid_reason=self._correspondence.grid_reason,
        )

    def _tell(self, state: str, reason: Reason | None) -> None:
        if (state, reason) != self._stands:
            self._stands = (state, reason)
            self._diary.stands(state, reason)

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
