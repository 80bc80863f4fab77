"""From ready units to results in the outbox, on every device."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path

from memgrid.clock import Clock
from memgrid.errors import InvalidError
from memgrid.log import get_logger
from memgrid.specs import parse_spec
from memgrid.units import LeaseId, LeaseOffer, Reason, ReasonCode, WorkFacts
from memgrid_volunteer.bench import FAILURES, Bench
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.desk import AHEAD_UNITS_MAX, Held, Stage
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kept import forget_old
from memgrid_volunteer.kinds.job import DeviceId, Progress
from memgrid_volunteer.member import Member
from memgrid_volunteer.owner.decision import RUN, Decision
from memgrid_volunteer.owner.preferences import Preferences, Work
from memgrid_volunteer.owner.sparing import refused
from memgrid_volunteer.ready import Ready
from memgrid_volunteer.sharing import Sharing

_CUT_OFF = (ReasonCode.OWNER_PAUSED, ReasonCode.LEAVING, ReasonCode.OUT_OF_MEMORY, ReasonCode.DEVICE_FAILED)
"""Ways to fail that say nothing against going on from the last committed state."""

log = get_logger(__name__)


class Fate(Enum):
    """What became of a unit on a device."""

    DONE = auto()
    FAILED = auto()
    """In a way in which it would fail again."""
    CUT_OFF = auto()
    """By the owner, the grid or the system: it may come back, and goes on where it was."""


class Workbench:
    """All devices and the queue before them, whichever grid a unit is of."""

    def __init__(
        self,
        *,
        benches: Sequence[Bench],
        members: Sequence[Member],
        sharing: Sharing,
        cache: BlobCache,
        work: Path,
        clock: Clock,
    ) -> None:
        self.benches = tuple(benches)
        self._members = tuple(members)
        self._sharing = sharing
        self._cache = cache
        self._work = work
        self._clock = clock
        self.ready = Ready(sharing)
        self._at: dict[Bench, tuple[Member, LeaseId]] = {}
        """What runs where."""
        self._finishing: set[asyncio.Task[None]] = set()
        self._is_serving = False
        self._serving: dict[DeviceId, asyncio.Task[None]] = {}
        """One for each device that has not left."""
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Carries what nobody expected out of the tasks above."""
        self.units_finished = 0
        """Reported or given back for good, since this process started."""

    @property
    def working_devices(self) -> int:
        return sum(bench.may_compute for bench in self.benches)

    @property
    def is_computing(self) -> bool:
        return bool(self._at)

    def is_computing_for(self, member: Member) -> bool:
        return any(each is member for each, _ in self._at.values())

    def ruled(self, decisions: Mapping[DeviceId, Decision]) -> dict[DeviceId, Decision]:
        """What holds for each device: the owner's decision, or its own need of a rest."""
        return {
            bench.device_id: bench.ruled(decisions[bench.device_id])
            for bench in self.benches
            if bench.device_id in decisions
        }

    async def obey(self, decisions: Mapping[DeviceId, Decision]) -> None:
        """From now on; returns when all memory that is to be given back is free."""
        changed = [
            bench.obey(decisions[bench.device_id])
            for bench in self.benches
            if bench.decision != decisions.get(bench.device_id, bench.decision)
        ]
        if changed:
            await asyncio.gather(*changed)
            await self.ready.look_again()
        self._give_back_what_waits_too_long()
        self.put_aside()

    def put_aside(self) -> None:
        """What is done of units that went back lies where nobody has to wait for a device."""
        self.ready.let_go()

    async def allow(self, preferences: Preferences) -> None:
        """What the owner says of the memory of each device."""
        for bench in self.benches:
            most_gb = preferences.device(bench.device_id).memory_gb
            await bench.allow(None if most_gb is None else int(float(most_gb) * 1e9))

    async def stop(self) -> None:
        """End the workers and with them what runs; results that are done are put away first."""
        await asyncio.gather(*(bench.stop() for bench in self.benches))
        if self._finishing:
            await asyncio.wait(self._finishing)

    async def stop_unit(self, member: Member, lease_id: LeaseId) -> None:
        """End the worker that runs it, if one does."""
        await asyncio.gather(*(bench.stop() for bench, at in self._at.items() if at == (member, lease_id)))

    async def drop_all_of(self, member: Member) -> None:
        """A grid wants nothing any more: its leases are gone, and what runs of them is ended."""
        for held in member.desk.all():
            if held.stage is not Stage.DONE:
                member.desk.remove(held.offer.lease_id)
                await self.stop_unit(member, held.offer.lease_id)

    async def give_back_all(self, reason: Reason) -> None:
        """Whatever is not done yet, running or not."""
        for member in self._members:
            for held in member.desk.all():
                if held.stage is not Stage.DONE:
                    await self._give_back_running(member, held, reason)

    async def give_back_refused(self, work: Work) -> None:
        """What the owner's preferences do not take any more, running or not."""
        # Which campaign a unit is of is between the grid and its operators.
        own = work.model_copy(update={"campaigns": (), "campaigns_avoided": ()})
        for member in self._members:
            for held in member.desk.all():
                if held.stage is not Stage.DONE and _is_refused(held.offer, own):
                    await self._give_back_running(member, held, RUN.reason_for_grid)

    async def _give_back_running(self, member: Member, held: Held, reason: Reason) -> None:
        member.desk.give_back(held.offer.lease_id, reason)
        await self.stop_unit(member, held.offer.lease_id)
        member.news.set()

    async def run_units(self) -> None:
        """Loops: from ready to the outbox, on every device, also on those that are added while it runs."""
        self._is_serving = True
        try:
            for bench in self.benches:
                self._begin(bench)
            await self._broken
        finally:
            self._is_serving = False
            serving = tuple(self._serving.values())
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    def add(self, bench: Bench) -> None:
        """One more device, before or while `run_units` runs."""
        self.benches = (*self.benches, bench)
        if self._is_serving:
            self._begin(bench)

    async def remove(self, bench: Bench) -> None:
        """A device has gone; returns when the unit that it ran is cut off, which goes on on another one."""
        bench.has_left = True
        self.benches = tuple(each for each in self.benches if each is not bench)
        await bench.stop()
        await self.ready.look_again()
        serving = self._serving.pop(bench.device_id, None)
        if serving is not None:
            await asyncio.wait([serving])

    def _begin(self, bench: Bench) -> None:
        task = self._serving[bench.device_id] = asyncio.create_task(self._serve(bench))
        task.add_done_callback(self._look_for_a_bug)

    async def _serve(self, bench: Bench) -> None:
        while (taken := await self.ready.take(bench)) is not None:
            member, prepared = taken
            if not member.desk.holds(prepared.offer.lease_id):
                prepared.keep()
            elif not await bench.start():
                await self.ready.put(member, prepared, first=True)
            else:
                await self._run(bench, member, prepared)

    async def _run(self, bench: Bench, member: Member, prepared: Prepared) -> None:
        offer, fate = prepared.offer, Fate.CUT_OFF
        held = member.desk.find(offer.lease_id)
        if held is None:
            prepared.keep()
            return
        try:
            fate = await self._compute(bench, member, prepared, held)
        finally:
            if fate is Fate.FAILED:
                prepared.clear()
            elif fate is Fate.CUT_OFF:
                prepared.keep()
                forget_old(self._work, self._clock.now())
        if fate is Fate.CUT_OFF and member.desk.holds(offer.lease_id):
            # Its lease is kept: it goes on from its last state, here or on another device.
            held.stage = Stage.OFFERED
            member.offered.put_nowait(offer.lease_id)

    async def _compute(self, bench: Bench, member: Member, prepared: Prepared, held: Held) -> Fate:
        offer, diary = prepared.offer, member.diary
        held.stage, held.began_s = Stage.RUNNING, self._clock.monotonic_s()
        diary.unit_started(bench.device_id, offer.unit_key, parse_spec(offer.spec), offer.estimate_s)
        self._at[bench] = (member, offer.lease_id)
        try:
            outcome = await bench.run(prepared, lambda progress: self._hear(bench.device_id, member, held, progress))
        finally:
            del self._at[bench]
            self._sharing.charge(member, diary.worked_s(bench.device_id))
        if outcome.facts is not None and member.desk.holds(offer.lease_id):
            bench.succeeded()
            # Hashing it and waiting for the disk take a while, in which the device begins with the next unit.
            held.stage = Stage.DONE
            task = asyncio.create_task(self._finish(bench, member, prepared, outcome.facts, outcome.utilisation))
            self._finishing.add(task)
            task.add_done_callback(self._finished)
            return Fate.DONE
        reason = outcome.failure or Reason(code=ReasonCode.UNIT_FAILED)
        if not member.desk.holds(offer.lease_id):
            # Cancelled, or given back by the owner, while it ran.
            ended = outcome.failure or Reason(code=ReasonCode.LEASE_ENDED, text="no longer wanted")
            diary.unit_dropped(bench.device_id, offer.unit_key, ended)
            return Fate.CUT_OFF
        if reason.code is ReasonCode.OWNER_PAUSED:
            why = bench.decision.reason or reason
            diary.unit_dropped(bench.device_id, offer.unit_key, why)
            return Fate.CUT_OFF
        if reason.code is ReasonCode.INPUT_UNAVAILABLE and await self._is_fetched_again(bench, member, held):
            return Fate.CUT_OFF
        if reason.code in FAILURES:
            bench.failed(reason)
        self.give_back(member, offer, reason, bench.device_id)
        return Fate.CUT_OFF if reason.code in _CUT_OFF else Fate.FAILED

    def _hear(self, device_id: DeviceId, member: Member, held: Held, progress: Progress) -> None:
        held.told = progress.done
        member.diary.unit_goes_on(device_id, held.offer.unit_key, progress)

    async def _is_fetched_again(self, bench: Bench, member: Member, held: Held) -> bool:
        """Whether the unit failed over damaged files of the cache, which are gone now and will be fetched."""
        blobs = (*held.model.files, *held.offer.inputs)
        damaged = await asyncio.to_thread(self._cache.recheck, [blob.digest for blob in blobs], held.model.digest)
        if not damaged or held.was_fetched_again:
            return False
        held.was_fetched_again = True
        text = f"{len(damaged)} of its files were damaged in the cache and are fetched again"
        reason = Reason(code=ReasonCode.DIGEST_MISMATCH, text=text)
        member.diary.unit_dropped(bench.device_id, held.offer.unit_key, reason)
        return True

    async def _finish(
        self, bench: Bench, member: Member, prepared: Prepared, facts: WorkFacts, utilisation: float | None
    ) -> None:
        offer = prepared.offer
        try:
            await asyncio.to_thread(member.outbox.add, offer, prepared.job.out_dir, facts)
        except OSError as error:
            reason = Reason(code=ReasonCode.INPUT_UNAVAILABLE, text=f"this host's disk: {error.strerror}")
            self.give_back(member, offer, reason, bench.device_id)
        except InvalidError as error:
            reason = Reason(code=ReasonCode.UNIT_FAILED, text=str(error)[:500])
            bench.failed(reason)
            self.give_back(member, offer, reason, bench.device_id)
        else:
            member.desk.remove(offer.lease_id)
            self.units_finished += 1
            member.diary.unit_done(
                bench.device_id, offer.unit_key, facts.tokens, facts.compute_s, utilisation=utilisation
            )
            member.news.set()
        finally:
            prepared.clear()

    def give_back(self, member: Member, offer: LeaseOffer, reason: Reason, device_id: DeviceId | None = None) -> None:
        """A unit that could not be computed here."""
        if member.desk.give_back(offer.lease_id, reason):
            self.units_finished += 1
            member.diary.unit_given_back(device_id, offer.unit_key, reason)
            member.news.set()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        self._look_for_a_bug(task)

    def _look_for_a_bug(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _give_back_what_waits_too_long(self) -> None:
        """Leases that no device is there for, and whose time would run out before one is again."""
        stopped = [bench for bench in self.benches if not bench.may_compute]
        if not stopped:
            return
        now = self._clock.now()
        waiting = [
            (member, held)
            for member in self._members
            for held in member.desk.all()
            if held.stage in (Stage.OFFERED, Stage.READY)
        ]
        for member, held in waiting[AHEAD_UNITS_MAX * self.working_devices :]:
            if not any(bench.keeps_until(held.offer.deadline_at, now) for bench in stopped):
                member.desk.give_back(held.offer.lease_id, stopped[0].decision.reason_for_grid)
                log.info("lease given back", lease_id=held.offer.lease_id, unit_key=held.offer.unit_key)
                member.news.set()


def _is_refused(offer: LeaseOffer, work: Work) -> bool:
    try:
        kind = parse_spec(offer.spec).kind
    except InvalidError:
        return False  # it was not looked at yet, and goes back for that
    return refused(work, kind=kind, estimate_s=offer.estimate_s) is not None
