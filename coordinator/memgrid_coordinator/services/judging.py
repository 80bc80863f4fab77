"""Compare reports, check uploads, and settle units by what was found; nothing here is lost by a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import Digest, token_ids
from memgrid.log import get_logger
from memgrid.units import HostId, LeaseId, PrefillSpec, Reason, ReasonCode, UploadOrder
from memgrid_coordinator.heavy import check
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.lifecycle import LeaseState, UploadState
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.life import Changed, UnitEvent, UploadFailed, UploadVerified, claim_of
from memgrid_coordinator.policy.quorum import Difference, Pair
from memgrid_coordinator.records import Event, Lease, Unit
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.settling import Settlement, UploadRule, settle
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import events, leases, units, uploads
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
SWEPT_AT_ONCE = 500


class Judging:
    """Everything between a report on disk and a unit that is accepted."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        catalogue: Catalogue,
        bell: Bell,
        blobs: BlobStore,
        engine: Engine,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._catalogue = catalogue
        self._bell = bell
        self._blobs = blobs
        self._engine = engine
        self._rule = UploadRule(
            shortest=settings.upload_shortest, slowest_bytes_per_s=settings.upload_slowest_bytes_per_s
        )
        self._busy: dict[object, asyncio.Task[None]] = {}
        self._progressed = True

    def announce(self, settlement: Settlement) -> None:
        """Tell everybody whom a step concerns, now that it is on disk."""
        for move in settlement.verdicts:
            self._metrics.verdicts.labels(move.move, move.reason.code.value).inc()
            if move.move == "reject":
                log.warning("report rejected", lease_id=move.lease_id, reason=move.reason.code, text=move.reason.text)
        self._metrics.credited_flops.inc(settlement.credited_flops)
        for unit in settlement.accepted:
            log.debug("unit accepted", unit_key=unit.key)
        for unit in settlement.ended:
            log.info("unit ended without a result", unit_key=unit.key)
        if settlement.accepted or settlement.ended:
            self.note_progress()
        self._bell.ring_hosts(settlement.news_for)
        if settlement.work_opened:
            self._bell.ring_for_work()
        for unit_id in settlement.compare:
            self._start(("compare", unit_id), self._compare(unit_id))
        for lease in settlement.ordered:
            if self._blobs.has(lease.outputs[0].digest):
                # Somebody made the very same bytes before: nothing has to travel.
                order = (lease.host_id, lease.lease_id, lease.outputs[0].digest)
                self._start(("receive", lease.lease_id), self._receive(*order))

    def note_progress(self) -> None:
        """A document may be complete now, or never: whoever assembles should look."""
        self._progressed = True

    def take_progress(self) -> bool:
        """Whether anything was noted since this was last asked."""
        progressed, self._progressed = self._progressed, False
        return progressed

    async def wanted_uploads(self, host_id: HostId, lease_id: LeaseId) -> tuple[UploadOrder, ...]:
        """What this host may upload for this lease, now."""
        ordered = await self._store.read(lambda connection: uploads.ordered_from(connection, host_id))
        return tuple(order for order in ordered if order.lease_id == lease_id)

    async def receive_upload(self, *, host_id: HostId, lease_id: LeaseId, digest: Digest) -> None:
        """An ordered output has arrived whole and is in the content store; check it in the background."""
        await self._receive(host_id, lease_id, digest)

    async def refuse_upload(self, *, host_id: HostId, lease_id: LeaseId, reason: Reason) -> None:
        """Note that an upload was turned down at the door; the order stands until it is due."""
        self._metrics.refusals.labels("upload", reason.code.value).inc()
        log.warning("upload turned down", host_id=host_id, lease_id=lease_id, reason=reason.code, text=reason.text)
        now = self._clock.now()

        def step(connection: Connection) -> None:
            lease = leases.by_id(connection, [lease_id]).get(lease_id)
            if lease is not None and lease.host_id == host_id:
                events.append(connection, [_event("upload_refused", lease, now, reason)])

        await self._store.write(step)

    async def catch_up(self) -> int:
        """Take up what a crash or a lost upload left behind; returns how much there was."""
        now = self._clock.now()
        undecided, received, overdue = await self._store.read(
            lambda connection: (
                units.undecided(connection, SWEPT_AT_ONCE),
                uploads.in_state(connection, UploadState.RECEIVED, SWEPT_AT_ONCE),
                uploads.in_state(connection, UploadState.ORDERED, SWEPT_AT_ONCE, due_by=now),
            )
        )
        for unit_id in undecided:
            self._start(("compare", unit_id), self._compare(unit_id))
        for lease_id in received:
            self._start(("check", lease_id), self._check(lease_id))
        if overdue:
            reason = Reason(code=ReasonCode.UPLOAD_MISSING, text="the ordered output was not uploaded in time")
            await self._end_uploads(
                overdue, "refuse", lambda lease: UploadFailed(lease_id=lease.lease_id, reason=reason)
            )
        return len(undecided) + len(received) + len(overdue)

    async def close(self) -> None:
        """Wait for what is in hand."""
        while self._busy:
            await asyncio.wait(list(self._busy.values()))

    def _start(self, key: object, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside everything else, unless the same is under way."""
        if key in self._busy:
            work.close()
            return
        task = asyncio.create_task(self._guarded(key, work))
        self._busy[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: object, task: asyncio.Task[None]) -> None:
        if self._busy.get(key) is task:
            del self._busy[key]

    async def _guarded(self, key: object, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:  # the top of a task: the next sweep tries again
            log.exception("judging failed; the next sweep takes it up again", work=str(key))

    async def _compare(self, unit_id: int) -> None:
        """Find out how the reports on a unit differ, then settle it by that."""
        now = self._clock.now()

        def read(connection: Connection) -> tuple[Unit, list[Lease]]:
            return units.by_id(connection, [unit_id])[unit_id], leases.of_units(connection, [unit_id])[unit_id]

        unit, found = await self._store.read(read)
        reported = [lease for lease in found if lease.state in (LeaseState.REPORTED, LeaseState.AGREED)]
        geometry = await self._store.read(lambda connection: self._catalogue.geometry(connection, unit.model))
        spec = PrefillSpec.from_bytes(unit.spec)
        known: dict[Pair, Difference] = await self._engine.run(
            check.compare, tuple(claim_of(lease) for lease in reported), geometry.layers, spec
        )
        settlement = await self._store.write(
            lambda connection: settle(connection, {unit_id: Changed()}, known=known, rule=self._rule, now=now)
        )
        # A report that came in between has not been compared: announcing starts the next round.
        self._busy.pop(("compare", unit_id), None)
        self.announce(settlement)

    async def _receive(self, host_id: HostId, lease_id: LeaseId, digest: Digest) -> None:
        now = self._clock.now()

        def step(connection: Connection) -> bool:
            lease = leases.by_id(connection, [lease_id]).get(lease_id)
            if lease is None or lease.host_id != host_id or lease.outputs[0].digest != digest:
                return False
            if not uploads.move(connection, [lease_id], "receive"):
                return False
            events.append(connection, [_event("upload_received", lease, now)])
            return True

        if await self._store.write(step):
            self._start(("check", lease_id), self._check(lease_id))

    async def _check(self, lease_id: LeaseId) -> None:
        """Whether the bytes are what the report said: their form, their tokens, and their sketch."""

        def read(connection: Connection) -> tuple[Lease, Unit]:
            lease = leases.by_id(connection, [lease_id])[lease_id]
            return lease, units.by_id(connection, [lease.unit_id])[lease.unit_id]

        lease, unit = await self._store.read(read)
        geometry = await self._store.read(lambda connection: self._catalogue.geometry(connection, unit.model))
        tokens = token_ids(self._blobs.path_of(unit.tokens_digest).read_bytes())
        path = self._blobs.path_of(lease.outputs[0].digest)
        reason: Reason | None = await self._engine.run(
            check.check_output, path, unit.spec, tokens, lease.sketch, geometry
        )
        if reason is None:
            await self._end_uploads([lease_id], "verify", lambda lease: UploadVerified(lease_id=lease.lease_id))
        else:
            failed = reason
            await self._end_uploads(
                [lease_id], "refuse", lambda lease: UploadFailed(lease_id=lease.lease_id, reason=failed)
            )

    async def _end_uploads(self, lease_ids: list[LeaseId], verb: str, event_of: Callable[[Lease], UnitEvent]) -> None:
        """Move orders to their end and settle their units by it."""
        now = self._clock.now()

        def step(connection: Connection) -> Settlement:
            found = leases.by_id(connection, lease_ids)
            moved = [lease for lease in found.values() if uploads.move(connection, [lease.lease_id], verb)]
            happened = {lease.unit_id: event_of(lease) for lease in moved}
            settlement = settle(connection, happened, known={}, rule=self._rule, now=now)
            log_lines = [
                _event(f"upload_{_PAST[verb]}", lease, now, _reason(happened[lease.unit_id])) for lease in moved
            ]
            events.append(connection, log_lines)
            return settlement

        self.announce(await self._store.write(step))


_PAST = {"verify": "verified", "refuse": "failed"}


def _reason(event: UnitEvent) -> Reason | None:
    return event.reason if isinstance(event, UploadFailed) else None


def _event(name: str, lease: Lease, now: datetime, reason: Reason | None = None) -> Event:
    return Event(
        at=now,
        name=name,
        unit_id=lease.unit_id,
        lease_id=lease.lease_id,
        host_id=lease.host_id,
        reason=reason,
    )
