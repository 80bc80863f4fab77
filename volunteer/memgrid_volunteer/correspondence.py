"""One Sync after another: what the coordinator is told, and what is done about its answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta

from memgrid.channel import told_wait_s
from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.errors import (
    BadSignatureError,
    BusyError,
    MemgridError,
    SessionReplacedError,
    UnknownHostError,
    UntrustedGridError,
)
from memgrid.log import get_logger
from memgrid.units import (
    NO_WISHES,
    HeldLease,
    HostFacts,
    LeaseOffer,
    ModelFiles,
    Reason,
    ReasonCode,
    ReportClaim,
    SyncAnswer,
    Wishes,
)
from memgrid.wire import REPORTS_MAX, WISHES_MAX
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.deliveries import Deliveries
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.member import Member
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.session import CoordinatorSession, Parcel
from memgrid_volunteer.sharing import Sharing
from memgrid_volunteer.travelling import Travelling
from memgrid_volunteer.workbench import Workbench

LONG_POLL = timedelta(seconds=20)
PARTING_LIMIT_S = 15.0
"""How long a process that ends goes on sending what it leaves; a service manager waits longer."""
_SKETCHES_BYTES_MAX = 4 << 20
_REPEATED_ANSWER_PAUSE_S = 0.5
# No later answer will be another one: the owner has to do something.
_FINAL = (UnknownHostError, UntrustedGridError, BadSignatureError, SessionReplacedError)

log = get_logger(__name__)


class Correspondence:
    """Tells the coordinator everything until it has confirmed it; `news` says that there is more to tell."""

    def __init__(
        self,
        *,
        member: Member,
        sharing: Sharing,
        session: CoordinatorSession,
        workbench: Workbench,
        deliveries: Deliveries,
        travelling: Travelling,
        cache: BlobCache,
        clock: Clock,
        rng: random.Random,
        limits: Limits,
        backoff: Backoff,
        budget: Budget,
    ) -> None:
        self._member = member
        self._sharing = sharing
        self._budget = budget
        self._session = session
        self._workbench = workbench
        self._deliveries = deliveries
        self._travelling = travelling
        self._desk = member.desk
        self._outbox = member.outbox
        self._cache = cache
        self._diary = member.diary
        self._clock = clock
        self._rng = rng
        self._news = member.news
        self._limits = limits
        self._backoff = backoff
        self.held_back: Reason | None = Reason(code=ReasonCode.NOT_SEEN)
        """Why nothing new is to be taken; set by who watches the owner and this machine."""
        self.wishes: Wishes = NO_WISHES
        self._asked_for = 0
        """Units, with the call that waits for its answer."""
        self._hang_up = asyncio.Event()

    async def correspond(self) -> None:
        """Loop: one Sync after another; the coordinator's absence is waited out, however long it lasts."""
        failures, wait = 0, timedelta(0)
        while True:
            if self._has_nothing_to_say():
                await self._news.wait()
            self._news.clear()
            parcel, began_s = self._parcel(wait), self._clock.monotonic_s()
            try:
                answer = await self._exchange(parcel)
            except _FINAL:
                raise
            except BusyError as busy:
                pause_s = told_wait_s(busy, self._rng)
                self._diary.turned_away(pause_s)
                await asyncio.sleep(pause_s)
                wait = timedelta(0)
                continue
            except MemgridError as error:
                failures += 1
                pause_s = self._backoff(failures, self._rng)
                log.info("sync failed", error=str(error), failures=failures, pause_s=round(pause_s, 1))
                self._member.away = str(error)
                if failures == 1:
                    self._diary.note(f"{error}; trying again until it does")
                await self._pause(pause_s)
                wait = timedelta(0)
                continue
            self._member.away = None
            if answer is not None:
                learned = await self._apply(parcel, answer, began_s)
                if wait:
                    await self._rest(answer, learned, began_s)
            # The first call after a silence is answered at once: the owner sees how things stand.
            failures, wait = 0, LONG_POLL

    def wants_more(self) -> bool:
        """Whether units should be asked for, and the call that waits asks for none."""
        return not self._asked_for and self._want() > 0

    def begin_anew(self) -> None:
        """Hang up and log in again at once: after a sleep no connection is worth waiting for."""
        self._hang_up.set()

    def describe(self, facts: HostFacts) -> None:
        """This host is another now: tell the grid, which hears of it with a log-in."""
        self._session.describe(facts)
        self.begin_anew()

    async def say_goodbye(self, limit_s: float) -> None:
        """Tell, briefly, what is finished and what is given back: others wait for these units."""
        reports, _ = self._reports()
        released = self._desk.released()
        if reports or released:
            try:
                async with asyncio.timeout(limit_s):
                    self._take_acks(await self._session.sync(Parcel(reports=reports, released=released)))
            except (MemgridError, TimeoutError) as error:
                log.info("left without goodbye", error=str(error) or "no answer in time")
            else:
                self._desk.told(released)
                await self._leave_behind()
        await self._session.close()

    async def _leave_behind(self) -> None:
        """What is done of the units given back, as far as it can go in a moment: the lease is free already."""
        try:
            async with asyncio.timeout(PARTING_LIMIT_S):
                await self._travelling.look(PARTING_LIMIT_S)
                if released := self._desk.released():
                    answer = await self._session.sync(Parcel(released=released))
                    await self._deliveries.leave_now(answer.uploads)
        except (MemgridError, OSError, TimeoutError) as error:
            log.info("half-done units stay here", error=str(error) or "they would have taken too long")

    def _has_nothing_to_say(self) -> bool:
        nothing_here = self._outbox.is_empty and not self._desk.released() and not len(self._desk)
        is_silent = self.held_back is not None or (self._sharing.is_shared and not self._want())
        return is_silent and nothing_here and not self._hang_up.is_set()

    def _parcel(self, wait: timedelta) -> Parcel:
        reports, held_back = self._reports()
        released = self._desk.released()
        self._asked_for = self._want()
        return Parcel(
            held=(*self._desk.held(self._clock.monotonic_s()), *held_back),
            awaiting=self._outbox.awaiting(),
            reports=reports,
            released=released,
            want=self._asked_for,
            # What is told should be answered at once; the line is held open only to listen.
            wait=timedelta(0) if reports or released else wait,
            wishes=replace(self.wishes, cached_models=_some(self._models_at_hand())),
        )

    def _reports(self) -> tuple[tuple[tuple[ReportClaim, bytes], ...], list[HeldLease]]:
        """As many reports as one Sync carries; the others are still held, as far as the coordinator knows."""
        reports: list[tuple[ReportClaim, bytes]] = []
        held_back: list[HeldLease] = []
        size_bytes = 0
        for entry in self._outbox.to_report():
            sketch = entry.sketch()
            size_bytes += len(sketch)
            if len(reports) < REPORTS_MAX and size_bytes <= _SKETCHES_BYTES_MAX:
                reports.append((entry.claim, sketch))
            else:
                held_back.append(HeldLease(lease_id=entry.claim.lease_id, fence=entry.claim.fence, progress=1.0))
        return tuple(reports), held_back

    def _models_at_hand(self) -> AbstractSet[Digest]:
        """What one grid had fetched is not another's business."""
        return self._cache.models() & self._member.models if self._sharing.is_shared else self._cache.models()

    def _want(self) -> int:
        if self.held_back is not None:
            return 0
        more = self._sharing.wanted(self._member, self._workbench.working_devices)
        if self._limits.max_units is not None:
            left = self._limits.max_units - self._workbench.units_finished - self._sharing.held_units
            more = min(more, max(0, left))
        return more

    async def _exchange(self, parcel: Parcel) -> SyncAnswer | None:
        """The answer; None when there was news to tell before one came."""
        if self._hang_up.is_set():
            self._hang_up.clear()
            await self._session.begin_anew()
        sent_bytes = sum(len(sketch) for _, sketch in parcel.reports)
        self._budget.traffic.add(sent_bytes)
        call = asyncio.create_task(self._session.sync(parcel))
        news, hang_up = asyncio.create_task(self._news.wait()), asyncio.create_task(self._hang_up.wait())
        try:
            await asyncio.wait({call, news, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done() and not hang_up.done() and not parcel.wait:
                await asyncio.wait({call, hang_up}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                call.cancel()
                await asyncio.wait({call})
                if call.cancelled():
                    return None
            return await call
        finally:
            for task in (call, news, hang_up):
                task.cancel()
            await asyncio.gather(call, news, hang_up, return_exceptions=True)

    async def _apply(self, parcel: Parcel, answer: SyncAnswer, began_s: float) -> bool:
        """Do what the answer says; False when it said nothing new."""
        self._desk.told(parcel.released)
        self._travelling.answered(parcel.released, answer.uploads)
        self._take_acks(answer)
        await self._take_verdicts(answer)
        for cancelled in answer.cancelled:
            held = self._desk.remove(cancelled.lease_id)
            if held is not None:
                log.info("lease withdrawn", lease_id=cancelled.lease_id, reason=cancelled.reason.code.value)
                await self._workbench.stop_unit(self._member, cancelled.lease_id)
        taken = self._take_offers(answer)
        ordered = [self._deliveries.put(order, began_s) for order in answer.uploads]
        self._diary.awaits(len(self._outbox))
        if parcel.want:
            self._member.reason = answer.idle_reason
        return bool(taken or any(ordered) or answer.acks or answer.verdicts or answer.cancelled)

    def _take_acks(self, answer: SyncAnswer) -> None:
        for ack in answer.acks:
            entry = self._outbox.find(ack.lease_id)
            if entry is None:
                continue
            if ack.accepted:
                self._outbox.acknowledge(ack.lease_id)
                continue
            reason = ack.reason or Reason(code=ReasonCode.LEASE_ENDED)
            log.warning("report refused", lease_id=ack.lease_id, reason=reason.code.value, text=reason.text)
            self._diary.report_refused(entry.claim.unit_key, reason)
            self._outbox.drop(ack.lease_id)

    async def _take_verdicts(self, answer: SyncAnswer) -> None:
        for notice in answer.verdicts:
            entry = self._outbox.find(notice.lease_id)
            if entry is None:
                continue
            if notice.verdict == "accepted":
                # The next chunk of the same text may be ours too, and would start by fetching this one.
                await asyncio.to_thread(self._cache.keep, entry.output, entry.claim.outputs[0].digest)
            self._diary.judged(entry.claim.unit_key, notice)
            self._outbox.drop(notice.lease_id)

    def _take_offers(self, answer: SyncAnswer) -> int:
        models = {model.digest: model for model in answer.models}
        self._member.models |= models.keys()
        return sum(self._take_offer(offer, models.get(offer.model)) for offer in answer.leases)

    def _take_offer(self, offer: LeaseOffer, model: ModelFiles | None) -> bool:
        if self._outbox.find(offer.lease_id) is not None:
            return False
        known = model or ModelFiles(digest=offer.model, files=())
        if not self._desk.take(offer, known):
            return False
        self._member.offered.put_nowait(offer.lease_id)
        return True

    async def _pause(self, pause_s: float) -> None:
        """Wait before the next try, unless the machine has slept meanwhile."""
        try:
            async with asyncio.timeout(pause_s):
                await self._hang_up.wait()
        except TimeoutError:
            return

    async def _rest(self, answer: SyncAnswer, learned: bool, began_s: float) -> None:
        """Not sooner than the coordinator likes, unless there is news; and never in circles over the same answer."""
        if learned:
            return
        took_s = self._clock.monotonic_s() - began_s
        wish_s = answer.call_again_in.total_seconds() if answer.is_empty else 0.0
        pause_s = max(wish_s, _REPEATED_ANSWER_PAUSE_S) - took_s
        if pause_s > 0:
            try:
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
            except TimeoutError:
                return


def _some(models: AbstractSet[Digest]) -> frozenset[Digest]:
    """As many as a Sync may name."""
    return frozenset(sorted(models)[:WISHES_MAX])
