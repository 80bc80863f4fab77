"""Compare reports, check uploads, and settle units by what was found; nothing here is lost by a crash."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.log import get_logger
from memgrid.units import HostId, LeaseId, Reason, ReasonCode, UploadOrder
from memgrid_coordinator.heavy import check
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.lifecycle import LeaseState, UploadState
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.life import Changed, UnitEvent, UploadFailed, UploadVerified, claim_of
from memgrid_coordinator.policy.quorum import Difference, Pair
from memgrid_coordinator.records import Event, Lease
from memgrid_coordinator.services.backlog import Backlog
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.settling import Settlement, UploadRule, settle
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import events, leases, units, uploads
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
SWEPT_AT_ONCE = 500
BATCH_MAX = 64
"""Units compared or checked in one call of the engine and settled in one step."""


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
        self._progressed = True
        self._uncompared = Backlog("compare", self._compare, batch_max=BATCH_MAX)
        self._present = Backlog("receive", self._receive, batch_max=BATCH_MAX)
        self._unchecked = Backlog("check", self._check, batch_max=BATCH_MAX)

    def announce(self, settlement: Settlement) -> None:
        """Tell everybody whom a step concerns, now that it is on disk."""
        for move in settlement.verdicts:
            self._metrics.verdicts.labels(move.move, move.reason.code.value).inc()
            if move.move == "reject":
                log.warning("report rejected", lease_id=move.lease_id, reason=move.reason.code, text=move.reason.text)
        self._metrics.credited_flops.inc(settlement.credited_flops)
        for stage, length in settlement.stages:
            self._metrics.unit_stage_s.labels(stage).observe(length.total_seconds())
        for unit in settlement.accepted:
            log.debug("unit accepted", unit_key=unit.key)
        for unit in settlement.ended:
            log.info("unit ended without a result", unit_key=unit.key)
        if settlement.accepted or settlement.ended:
            self.note_progress()
        self._bell.ring_hosts(settlement.news_for)
        if settlement.work_opened:
            self._bell.ring_for_work()
        self._uncompared.add(settlement.compare)
        # Where somebody made the very same bytes before, nothing has to travel.
        self._present.add(
            (lease.host_id, lease.lease_id)
            for lease in settlement.ordered
            if self._blobs.has(lease.outputs[0].digest)
        )

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
        orders = await self.wanted_uploads(host_id, lease_id)
        if any(order.digest == digest for order in orders):
            await self._receive([(host_id, lease_id)])

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
        self._uncompared.add(undecided)
        self._unchecked.add(received)
        if overdue:
            reason = Reason(code=ReasonCode.UPLOAD_MISSING, text="the ordered output was not uploaded in time")
            await self._end_uploads(
                overdue, "refuse", lambda lease: UploadFailed(lease_id=lease.lease_id, reason=reason)
            )
        return len(undecided) + len(received) + len(overdue)

    async def close(self) -> None:
        """Wait for what is in hand."""
        for backlog in (self._present, self._uncompared, self._unchecked):
            await backlog.drained()

    async def _compare(self, unit_ids: list[int]) -> None:
        """Find out how the reports on some units differ, then settle them by that."""
        now = self._clock.now()
        questions = await self._store.read(lambda connection: self._comparisons(connection, unit_ids))
        answers = await self._engine.run(check.compare_all, questions)
        known: dict[Pair, Difference] = {pair: found for answer in answers for pair, found in answer.items()}
        happened = dict.fromkeys(unit_ids, Changed())
        settlement = await self._store.write(
            lambda connection: settle(connection, happened, known=known, rule=self._rule, now=now)
        )
        # Reports that came in between have not been compared: announcing starts the next round.
        self.announce(settlement)

    def _comparisons(self, connection: Connection, unit_ids: list[int]) -> list[check.Comparison]:
        found = units.by_id(connection, unit_ids)
        of_unit = leases.of_units(connection, unit_ids)
        return [
            check.Comparison(
                claims=tuple(
                    claim_of(lease)
                    for lease in of_unit[unit.unit_id]
                    if lease.state in (LeaseState.REPORTED, LeaseState.AGREED)
                ),
                layers=self._catalogue.geometry(connection, unit.model).layers,
                spec=unit.spec,
            )
            for unit in found.values()
        ]

    async def _receive(self, arrived: list[tuple[HostId, LeaseId]]) -> None:
        """The ordered outputs of these leases are in the content store."""
        now = self._clock.now()

        def step(connection: Connection) -> list[LeaseId]:
            found = leases.by_id(connection, [lease_id for _, lease_id in arrived])
            theirs = [lease_id for host_id, lease_id in arrived if found[lease_id].host_id == host_id]
            moved = sorted(uploads.move(connection, theirs, "receive"))
            events.append(connection, [_event("upload_received", found[lease_id], now) for lease_id in moved])
            return moved

        self._unchecked.add(await self._store.write(step))

    async def _check(self, lease_ids: list[LeaseId]) -> None:
        """Whether the bytes are what the reports said: their form, their tokens, and their sketches."""
        uploaded = await self._store.read(lambda connection: self._uploaded(connection, lease_ids))
        reasons = await self._engine.run(check.check_outputs, [one for _, one in uploaded])
        verdicts = {lease_id: reason for (lease_id, _), reason in zip(uploaded, reasons, strict=True)}
        if good := [lease_id for lease_id, reason in verdicts.items() if reason is None]:
            await self._end_uploads(good, "verify", lambda lease: UploadVerified(lease_id=lease.lease_id))
        bad = {lease_id: reason for lease_id, reason in verdicts.items() if reason is not None}
        if bad:
            await self._end_uploads(
                list(bad),
                "refuse",
                lambda lease: UploadFailed(lease_id=lease.lease_id, reason=bad[lease.lease_id]),
            )

    def _uploaded(
        self, connection: Connection, lease_ids: list[LeaseId]
    ) -> list[tuple[LeaseId, check.UploadedOutput]]:
        found = leases.by_id(connection, lease_ids)
        of_unit = units.by_id(connection, {lease.unit_id for lease in found.values()})
        return [
            (
                lease.lease_id,
                check.UploadedOutput(
                    path=self._blobs.path_of(lease.outputs[0].digest),
                    spec=of_unit[lease.unit_id].spec,
                    tokens=self._blobs.path_of(of_unit[lease.unit_id].tokens_digest),
                    sketch=lease.sketch,
                    geometry=self._catalogue.geometry(connection, of_unit[lease.unit_id].model),
                ),
            )
            for lease in found.values()
        ]

    async def _end_uploads(self, lease_ids: list[LeaseId], verb: str, event_of: Callable[[Lease], UnitEvent]) -> None:
        """Move orders to their end and settle their units by it."""
        now = self._clock.now()

        def step(connection: Connection) -> Settlement:
            found = leases.by_id(connection, lease_ids)
            ended = uploads.move(connection, lease_ids, verb)
            moved = [lease for lease in found.values() if lease.lease_id in ended]
            happened = {lease.unit_id: event_of(lease) for lease in moved}
            settlement = settle(connection, happened, known={}, rule=self._rule, now=now)
            told = [_event(_ENDS[verb], lease, now, _reason(happened[lease.unit_id])) for lease in moved]
            events.append(connection, told)
            return settlement

        self.announce(await self._store.write(step))


_ENDS = {"verify": "upload_verified", "refuse": "upload_failed"}


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
