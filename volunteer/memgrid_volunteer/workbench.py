"""Two loops over the desk: fetch what the next unit needs while the worker runs the present one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from memgrid.clock import Clock
from memgrid.errors import InvalidError, MemgridError, TooLargeError
from memgrid.log import get_logger
from memgrid.specs import parse_spec
from memgrid.units import LeaseId, LeaseOffer, Reason, ReasonCode, WorkFacts
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.desk import Desk, Held, Stage
from memgrid_volunteer.diary import Diary
from memgrid_volunteer.inputs import Prepared, prepare
from memgrid_volunteer.kept import forget_old
from memgrid_volunteer.kinds.job import DeviceId, Progress
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.sandbox import Sandbox
from memgrid_volunteer.transfers import Transfers

FAILURES_BEFORE_REST = 3
REST_MAX_S = 600.0
_CUT_OFF = (ReasonCode.OWNER_PAUSED, ReasonCode.LEAVING, ReasonCode.OUT_OF_MEMORY)
"""Ways to fail that say nothing against going on from the last committed state."""

log = get_logger(__name__)


class Workbench:
    """From an offer on the desk to results in the outbox; `news` is set when the coordinator should hear of it."""

    def __init__(
        self,
        *,
        desk: Desk,
        outbox: Outbox,
        cache: BlobCache,
        transfers: Transfers,
        sandbox: Sandbox,
        device_id: DeviceId,
        work: Path,
        diary: Diary,
        clock: Clock,
        news: asyncio.Event,
    ) -> None:
        self._desk = desk
        self._outbox = outbox
        self._cache = cache
        self._transfers = transfers
        self._sandbox = sandbox
        self._device_id = device_id
        self._work = work
        self._diary = diary
        self._clock = clock
        self._news = news
        self._offered: asyncio.Queue[LeaseId] = asyncio.Queue()
        self._ready: asyncio.Queue[Prepared] = asyncio.Queue()
        self._running: LeaseId | None = None
        self.units_finished = 0
        """Reported or given back for good, since this process started."""
        self._failures = 0
        self._rests_until_s = 0.0

    def put(self, lease_id: LeaseId) -> None:
        """Begin with a lease that has been put on the desk."""
        self._offered.put_nowait(lease_id)

    @property
    def is_resting(self) -> bool:
        """Whether so many units in a row have failed here that this machine is the more likely cause."""
        return self._clock.monotonic_s() < self._rests_until_s

    async def stop(self, lease_id: LeaseId | None = None) -> None:
        """End the worker and with it the running unit, or only if it is that one; it starts again when needed."""
        if lease_id in (None, self._running):
            await self._sandbox.kill()

    async def prepare_offers(self) -> None:
        """Loop: from offered to ready."""
        while True:
            held = self._desk.find(await self._offered.get())
            if held is None:
                continue
            offer = held.offer
            try:
                prepared = await prepare(
                    offer, held.model, transfers=self._transfers, cache=self._cache, work=self._work
                )
            except (MemgridError, OSError) as error:
                self._give_back(offer, _why_not_prepared(error), is_ours=isinstance(error, OSError | TooLargeError))
                continue
            held.stage = Stage.READY
            self._ready.put_nowait(prepared)

    async def run_units(self) -> None:
        """Loop: from ready to the outbox."""
        while True:
            prepared = await self._ready.get()
            ended = False
            try:
                if self._desk.holds(prepared.offer.lease_id):
                    ended = await self._run(prepared)
            finally:
                # Cut off by the owner, the grid or the system, a unit may come back, and goes on where it was.
                if ended:
                    prepared.clear()
                else:
                    prepared.keep()
                    forget_old(self._work, self._clock.now())

    async def _run(self, prepared: Prepared) -> bool:
        """Whether the unit has come to an end here: done, or failed in a way that it would fail again."""
        offer = prepared.offer
        held = self._desk.find(offer.lease_id)
        assert held is not None
        held.stage, held.began_s = Stage.RUNNING, self._clock.monotonic_s()
        self._diary.unit_started(self._device_id, offer.unit_key, parse_spec(offer.spec), offer.estimate_s)
        self._running = offer.lease_id
        try:
            outcome = await self._sandbox.run(prepared.job, lambda progress: self._hear(held, progress))
        finally:
            self._running = None
        if not self._desk.holds(offer.lease_id):
            # Cancelled, or given back by the owner, while it ran.
            reason = outcome.failure or Reason(code=ReasonCode.LEASE_ENDED, text="no longer wanted")
            self._diary.unit_dropped(self._device_id, offer.unit_key, reason)
            return False
        if outcome.facts is None:
            reason = outcome.failure or Reason(code=ReasonCode.UNIT_FAILED)
            self._give_back(offer, reason)
            return reason.code not in _CUT_OFF
        await self._finish(prepared, outcome.facts)
        return True

    def _hear(self, held: Held, progress: Progress) -> None:
        held.told = progress.done
        self._diary.unit_goes_on(self._device_id, held.offer.unit_key, progress)

    async def _finish(self, prepared: Prepared, facts: WorkFacts) -> None:
        offer = prepared.offer
        try:
            await asyncio.to_thread(self._outbox.add, offer, prepared.job.out_dir, facts)
        except (InvalidError, OSError) as error:
            self._give_back(offer, Reason(code=ReasonCode.UNIT_FAILED, text=str(error)[:500]))
            return
        self._desk.remove(offer.lease_id)
        self.units_finished += 1
        self._failures = 0
        self._diary.unit_done(self._device_id, offer.unit_key, facts.tokens, facts.compute_s)
        self._news.set()

    def _give_back(self, offer: LeaseOffer, reason: Reason, *, is_ours: bool = False) -> None:
        """`is_ours`: the next unit would fare no better here, so after a few of them rest."""
        if self._desk.give_back(offer.lease_id, reason):
            self.units_finished += 1
            self._failures += is_ours or reason.code in (ReasonCode.UNIT_FAILED, ReasonCode.OUT_OF_MEMORY)
            if self._failures >= FAILURES_BEFORE_REST:
                self._rests_until_s = self._clock.monotonic_s() + min(2.0**self._failures, REST_MAX_S)
            self._diary.unit_given_back(self._device_id, offer.unit_key, reason)
            self._news.set()


def _why_not_prepared(error: MemgridError | OSError) -> Reason:
    log.warning("unit can't be prepared", error=str(error))
    # A lease that contradicts itself is the unit's fault; everything else may go well elsewhere.
    code = ReasonCode.UNIT_FAILED if isinstance(error, InvalidError) else ReasonCode.INPUT_UNAVAILABLE
    text = f"this host's disk: {error.strerror}" if isinstance(error, OSError) else str(error)[:500]
    return Reason(code=code, text=text)
