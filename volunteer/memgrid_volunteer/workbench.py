"""From ready units to results in the outbox, on every device."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path

from memgrid.clock import Clock
from memgrid.errors import InvalidError
from memgrid.log import get_logger
from memgrid.specs import parse_spec
from memgrid.units import LeaseId, LeaseOffer, Reason, ReasonCode, WorkFacts
from memgrid_volunteer.bench import Bench
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.desk import AHEAD_UNITS_MAX, Desk, Held, Stage
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kept import forget_old
from memgrid_volunteer.kinds.job import DeviceId, Progress
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.owner.decision import RUN, Decision
from memgrid_volunteer.owner.preferences import Preferences, Work
from memgrid_volunteer.owner.sparing import refused
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.preparing import Preparing
from memgrid_volunteer.ready import Ready
from memgrid_volunteer.transfers import Transfers

_CUT_OFF = (ReasonCode.OWNER_PAUSED, ReasonCode.LEAVING, ReasonCode.OUT_OF_MEMORY, ReasonCode.DEVICE_FAILED)
"""Ways to fail that say nothing against going on from the last committed state."""
_FAILURES = (ReasonCode.UNIT_FAILED, ReasonCode.OUT_OF_MEMORY, ReasonCode.DEVICE_FAILED)

log = get_logger(__name__)


class Fate(Enum):
    """What became of a unit on a device."""

    DONE = auto()
    FAILED = auto()
    """In a way in which it would fail again."""
    CUT_OFF = auto()
    """By the owner, the grid or the system: it may come back, and goes on where it was."""


class Workbench:
    """All devices and the queue before them; `news` is set when the coordinator should hear of something."""

    def __init__(
        self,
        *,
        benches: Sequence[Bench],
        desk: Desk,
        outbox: Outbox,
        cache: BlobCache,
        transfers: Transfers,
        work: Path,
        diary: Diary,
        clock: Clock,
        rng: random.Random,
        backoff: Backoff,
        news: asyncio.Event,
    ) -> None:
        self.benches = tuple(benches)
        self._desk = desk
        self._outbox = outbox
        self._cache = cache
        self._work = work
        self._diary = diary
        self._clock = clock
        self._news = news
        self._ready = Ready()
        self.preparing = Preparing(
            desk=desk,
            ready=self._ready,
            cache=cache,
            transfers=transfers,
            work=work,
            clock=clock,
            rng=rng,
            backoff=backoff,
            give_back=self._give_back,
        )
        self._finishing: set[asyncio.Task[None]] = set()
        self._is_serving = False
        self._serving: set[asyncio.Task[None]] = set()
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
        return any(bench.lease_id is not None for bench in self.benches)

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
            await self._ready.look_again()
        self._give_back_what_waits_too_long()
        self.put_aside()

    def put_aside(self) -> None:
        """What is done of units that went back lies where nobody has to wait for a device."""
        self._ready.let_go(self._desk.holds)

    async def allow(self, preferences: Preferences) -> None:
        """What the owner says of the memory of each device."""
        for bench in self.benches:
            most_gb = preferences.device(bench.device_id).memory_gb
            await bench.allow(None if most_gb is None else int(float(most_gb) * 1e9))

    async def stop(self, lease_id: LeaseId | None = None) -> None:
        """End the workers and with them what runs, or only that unit; results that are done are put away first."""
        stopped = [bench for bench in self.benches if lease_id in (None, bench.lease_id)]
        await asyncio.gather(*(bench.stop() for bench in stopped))
        if lease_id is None and self._finishing:
            await asyncio.wait(self._finishing)

    async def give_back_refused(self, work: Work) -> None:
        """What the owner's preferences do not take any more, running or not."""
        # Which campaign a unit is of is between the grid and its operators.
        own = work.model_copy(update={"campaigns": (), "campaigns_avoided": ()})
        for held in self._desk.all():
            if held.stage is not Stage.DONE and _is_refused(held.offer, own):
                self._desk.give_back(held.offer.lease_id, RUN.reason_for_grid)
                await self.stop(held.offer.lease_id)
                self._news.set()

    async def run_units(self) -> None:
        """Loops: from ready to the outbox, on every device, also on those that are added while it runs."""
        self._is_serving = True
        try:
            for bench in self.benches:
                self._begin(bench)
            await self._broken
        finally:
            self._is_serving = False
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def add(self, bench: Bench) -> None:
        """One more device, before or while `run_units` runs."""
        self.benches = (*self.benches, bench)
        if self._is_serving:
            self._begin(bench)

    async def remove(self, bench: Bench) -> None:
        """A device has gone; the unit that it runs is cut off, and goes on on another one."""
        bench.has_left = True
        self.benches = tuple(each for each in self.benches if each is not bench)
        await bench.stop()
        await self._ready.look_again()

    def _begin(self, bench: Bench) -> None:
        task = asyncio.create_task(self._serve(bench))
        self._serving.add(task)
        task.add_done_callback(self._served)

    async def _serve(self, bench: Bench) -> None:
        while (prepared := await self._ready.take(bench)) is not None:
            lease_id = prepared.offer.lease_id
            if not self._desk.holds(lease_id):
                prepared.keep()
            elif not await bench.start():
                await self._ready.put(prepared, first=True)
            else:
                await self._run(bench, prepared)

    async def _run(self, bench: Bench, prepared: Prepared) -> None:
        offer, fate = prepared.offer, Fate.CUT_OFF
        held = self._desk.find(offer.lease_id)
        if held is None:
            prepared.keep()
            return
        try:
            fate = await self._compute(bench, prepared, held)
        finally:
            if fate is Fate.FAILED:
                prepared.clear()
            elif fate is Fate.CUT_OFF:
                prepared.keep()
                forget_old(self._work, self._clock.now())
        if fate is Fate.CUT_OFF and self._desk.holds(offer.lease_id):
            # Its lease is kept: it goes on from its last state, here or on another device.
            held.stage = Stage.OFFERED
            self.preparing.put(offer.lease_id)

    async def _compute(self, bench: Bench, prepared: Prepared, held: Held) -> Fate:
        offer = prepared.offer
        held.stage, held.began_s = Stage.RUNNING, self._clock.monotonic_s()
        self._diary.unit_started(bench.device_id, offer.unit_key, parse_spec(offer.spec), offer.estimate_s)
        bench.lease_id = offer.lease_id
        try:
            outcome = await bench.run(prepared, lambda progress: self._hear(bench.device_id, held, progress))
        finally:
            bench.lease_id = None
        if outcome.facts is not None and self._desk.holds(offer.lease_id):
            bench.succeeded()
            # Hashing it and waiting for the disk take a while, in which the device begins with the next unit.
            held.stage = Stage.DONE
            task = asyncio.create_task(self._finish(bench, prepared, outcome.facts, outcome.utilisation))
            self._finishing.add(task)
            task.add_done_callback(self._finished)
            return Fate.DONE
        reason = outcome.failure or Reason(code=ReasonCode.UNIT_FAILED)
        if not self._desk.holds(offer.lease_id):
            # Cancelled, or given back by the owner, while it ran.
            ended = outcome.failure or Reason(code=ReasonCode.LEASE_ENDED, text="no longer wanted")
            self._diary.unit_dropped(bench.device_id, offer.unit_key, ended)
            return Fate.CUT_OFF
        if reason.code is ReasonCode.OWNER_PAUSED:
            why = bench.decision.reason or reason
            self._diary.unit_dropped(bench.device_id, offer.unit_key, why)
            return Fate.CUT_OFF
        if reason.code is ReasonCode.INPUT_UNAVAILABLE and await self._is_fetched_again(bench, held):
            return Fate.CUT_OFF
        if reason.code in _FAILURES:
            bench.failed(reason)
        self._give_back(offer, reason, bench.device_id)
        return Fate.CUT_OFF if reason.code in _CUT_OFF else Fate.FAILED

    def _hear(self, device_id: DeviceId, held: Held, progress: Progress) -> None:
        held.told = progress.done
        self._diary.unit_goes_on(device_id, held.offer.unit_key, progress)

    async def _is_fetched_again(self, bench: Bench, held: Held) -> bool:
        """Whether the unit failed over damaged files of the cache, which are gone now and will be fetched."""
        blobs = (*held.model.files, *held.offer.inputs)
        damaged = await asyncio.to_thread(self._cache.recheck, [blob.digest for blob in blobs], held.model.digest)
        if not damaged or held.was_fetched_again:
            return False
        held.was_fetched_again = True
        text = f"{len(damaged)} of its files were damaged in the cache and are fetched again"
        self._diary.unit_dropped(
            bench.device_id, held.offer.unit_key, Reason(code=ReasonCode.DIGEST_MISMATCH, text=text)
        )
        return True

    async def _finish(self, bench: Bench, prepared: Prepared, facts: WorkFacts, utilisation: float | None) -> None:
        offer = prepared.offer
        try:
            await asyncio.to_thread(self._outbox.add, offer, prepared.job.out_dir, facts)
        except OSError as error:
            reason = Reason(code=ReasonCode.INPUT_UNAVAILABLE, text=f"this host's disk: {error.strerror}")
            self._give_back(offer, reason, bench.device_id)
        except InvalidError as error:
            reason = Reason(code=ReasonCode.UNIT_FAILED, text=str(error)[:500])
            bench.failed(reason)
            self._give_back(offer, reason, bench.device_id)
        else:
            self._desk.remove(offer.lease_id)
            self.units_finished += 1
            self._diary.unit_done(
                bench.device_id, offer.unit_key, facts.tokens, facts.compute_s, utilisation=utilisation
            )
            self._news.set()
        finally:
            prepared.clear()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        self._look_for_a_bug(task)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._look_for_a_bug(task)

    def _look_for_a_bug(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _give_back(self, offer: LeaseOffer, reason: Reason, device_id: DeviceId | None = None) -> None:
        if self._desk.give_back(offer.lease_id, reason):
            self.units_finished += 1
            self._diary.unit_given_back(device_id, offer.unit_key, reason)
            self._news.set()

    def _give_back_what_waits_too_long(self) -> None:
        """Leases that no device is there for, and whose time would run out before one is again."""
        stopped = [bench for bench in self.benches if not bench.may_compute]
        if not stopped:
            return
        now = self._clock.now()
        waiting = [held for held in self._desk.all() if held.stage in (Stage.OFFERED, Stage.READY)]
        for held in waiting[AHEAD_UNITS_MAX * self.working_devices :]:
            if not any(bench.keeps_until(held.offer.deadline_at, now) for bench in stopped):
                reason = stopped[0].decision.reason_for_grid
                self._desk.give_back(held.offer.lease_id, reason)
                log.info("lease given back", lease_id=held.offer.lease_id, unit_key=held.offer.unit_key)
                self._news.set()


def _is_refused(offer: LeaseOffer, work: Work) -> bool:
    try:
        kind = parse_spec(offer.spec).kind
    except InvalidError:
        return False  # it was not looked at yet, and goes back for that
    return refused(work, kind=kind, estimate_s=offer.estimate_s) is not None
