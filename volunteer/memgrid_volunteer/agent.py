"""The volunteer's heart: ask, fetch, run, report, again; and stop at once when the owner says so.

The coordinator is told everything by `Sync`; whatever it has not confirmed is said again, so neither a lost answer
nor a restart on either side loses work. The outbox on disk is the memory, this process only its reader.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from memgrid.clock import Clock
from memgrid.errors import MemgridError
from memgrid.units import NO_WISHES, HostFacts, Reason, ReasonCode
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.cluster.cluster import Cluster
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.line import Line
from memgrid_volunteer.loops import together
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.sparing import transfers_held
from memgrid_volunteer.ruling import OWNER_CHECK_S, Ruled, Ruling
from memgrid_volunteer.service import notify
from memgrid_volunteer.sharing import Sharing
from memgrid_volunteer.taking import Situation, combined, standing, why_nothing_is_taken, wishes_of
from memgrid_volunteer.timekeeping import Timekeeper, jump_text
from memgrid_volunteer.workbench import Workbench

GOODBYE_LIMIT_S = 5.0


class Agent:
    """Runs until told to stop, or until `limits.max_units` are through; then gives back what it holds."""

    def __init__(
        self,
        *,
        ruling: Ruling,
        lines: Sequence[Line],
        sharing: Sharing,
        workbench: Workbench,
        cache: BlobCache,
        budget: Budget,
        diary: Diary,
        clock: Clock,
        limits: Limits,
        cluster: Cluster | None = None,
    ) -> None:
        self._ruling = ruling
        self._lines = tuple(lines)
        self._sharing = sharing
        self._workbench = workbench
        self._cache = cache
        self._budget = budget
        self._diary = diary
        self._clock = clock
        self._limits = limits
        self._cluster = cluster
        self._timekeeper = Timekeeper()
        self._stopped = asyncio.Event()
        self._settling_since_s: float | None = None
        self._stands: tuple[str, Reason | None] | None = None

    def stop(self) -> None:
        """End `run` soon; safe to call from a signal handler."""
        self._stopped.set()

    async def run(self) -> None:
        """Raises what only the owner can mend, when no grid is left that would have this host."""
        await asyncio.to_thread(self._ruling.watcher.look)
        try:
            await together(
                self._until_stopped(),
                self._ruling.watcher.run(),
                self._workbench.run_units(),
                self._work_for_all(),
                self._watch(),
                *self._loops_of_cluster(),
            )
        finally:
            await self._workbench.stop()
            for line in self._lines:
                line.member.desk.give_all_back(Reason(code=ReasonCode.LEAVING, text="the volunteer has stopped"))
            self._workbench.put_aside()
            await asyncio.gather(*(self._say_goodbye(line) for line in self._lines))
            self._sharing.write()
            self._write_traffic()
            self._diary.stands("stopped")

    def _loops_of_cluster(self) -> list[Coroutine[Any, Any, None]]:
        return [] if self._cluster is None else [self._cluster.run(self._workbench, self._diary, self._describe)]

    def _describe(self, facts: HostFacts) -> None:
        """This host is another from now on: machines came, or left."""
        for line in self._lines:
            line.correspondence.describe(facts)

    async def _until_stopped(self) -> None:
        await self._stopped.wait()

    async def _work_for_all(self) -> None:
        ended = await asyncio.gather(*(self._work_for(line) for line in self._lines))
        raise ended[-1]

    async def _work_for(self, line: Line) -> MemgridError:
        """Loop: one grid, until it turns this host away for good; the others go on."""
        try:
            await line.run()
            raise AssertionError("a line has no end of its own")
        except MemgridError as error:
            line.member.ended = error
            await self._workbench.drop_all_of(line.member)
            if self._sharing.is_shared:
                line.member.diary.note(f"{error}; nothing is done for it until the volunteer starts again")
            return error

    async def _say_goodbye(self, line: Line) -> None:
        await line.say_goodbye(GOODBYE_LIMIT_S)
        line.member.diary.stands("stopped", None)

    def _write_traffic(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: the month's last megabytes are forgotten
            self._budget.traffic.write()

    async def _watch(self) -> None:
        """Loop: look at what the owner wants, at how this machine stands, and whether this run is through."""
        while True:
            self._look_at_the_clocks()
            ruled = self._ruling.look()
            await self._obey(ruled if self._cluster is None else self._cluster.joined(ruled))
            if await self._is_through():
                self._stopped.set()
            # Here and nowhere else: a service manager is to hear of it when this loop no longer turns.
            notify.alive()
            await asyncio.sleep(OWNER_CHECK_S)

    def _look_at_the_clocks(self) -> None:
        jumped_s = self._timekeeper.jumped_s(self._clock.now(), self._clock.monotonic_s())
        if jumped_s:
            self._diary.tell(jump_text(jumped_s))
            for line in self._lines:
                line.correspondence.begin_anew()

    async def _obey(self, ruled: Ruled) -> None:
        """Devices first: whoever sits at this machine waits for them, nobody for the rest."""
        decisions = self._workbench.ruled(ruled.decisions)
        await self._workbench.obey(decisions)
        self._diary.decided(decisions, ruled.signals)
        await self._allow(ruled)
        stands = [self._look_at(line, self._situation(line, decisions, ruled)) for line in self._lines]
        self._tell(*combined(stands))

    def _look_at(self, line: Line, situation: Situation) -> tuple[str, Reason | None]:
        """How it stands with one grid; who may ask for units again is told so."""
        member, correspondence = line.member, line.correspondence
        held_back = why_nothing_is_taken(situation)
        had_none = correspondence.held_back is None
        correspondence.held_back = held_back
        if (held_back is None) != had_none or (self._sharing.is_shared and correspondence.wants_more()):
            member.news.set()
        if member.ended is not None:
            stands: tuple[str, Reason | None] = ("ended", Reason(code=ReasonCode.OTHER, text=str(member.ended)))
        else:
            stands = standing(situation)
        member.diary.stands(*stands)
        return stands

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
        changed = [line for line in self._lines if line.correspondence.wishes != wishes]
        for line in changed:
            line.correspondence.wishes = wishes
            line.member.news.set()
        if changed:
            await self._workbench.give_back_refused(preferences.work)

    def _situation(self, line: Line, decisions: Mapping[DeviceId, Decision], ruled: Ruled) -> Situation:
        member = line.member
        is_computing = self._workbench.is_computing_for(member)
        return Situation(
            decisions=decisions,
            network_spared=self._budget.spared,
            rest=line.preparing.rest_reason,
            data_away=line.preparing.data_away,
            # What one grid does not take must not fill the room that the others need.
            outbox_is_full=member.outbox.size_bytes() > self._limits.outbox_bytes / len(self._lines),
            wishes=wishes_of(ruled.preferences.work),
            grid_away=member.away,
            is_computing=is_computing,
            is_busy_for_others=self._workbench.is_computing and not is_computing,
            holds_units=len(member.desk) > 0,
            grid_reason=member.reason,
        )

    def _tell(self, state: str, reason: Reason | None) -> None:
        if (state, reason) != self._stands:
            self._stands = (state, reason)
            self._diary.stands(state, reason)

    async def _is_through(self) -> bool:
        limit, members = self._limits.max_units, [line.member for line in self._lines]
        if limit is None or self._workbench.units_finished < limit:
            return False
        if self._sharing.is_shared:
            # Several were asked at once, and more came than were wanted.
            await self._workbench.give_back_all(Reason(code=ReasonCode.LEAVING))
        if any(len(member.desk) or member.desk.released() for member in members if member.ended is None):
            return False
        open_verdicts = sum(len(member.outbox) for member in members)
        if not open_verdicts:
            return True
        now_s = self._clock.monotonic_s()
        self._settling_since_s = self._settling_since_s or now_s
        is_idle = all(line.deliveries.is_idle for line in self._lines)
        if now_s - self._settling_since_s < self._limits.settle_limit_s or not is_idle:
            return False
        self._diary.tell(f"{open_verdicts} verdicts are still to come; the next run will ask for them")
        return True
