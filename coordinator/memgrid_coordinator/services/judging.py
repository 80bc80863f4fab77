"""Compare reports, check uploads, and settle units by what was found; nothing here is lost by a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.kinds.audit import Zone
from memgrid.kinds.kind import Difference
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.tolerances import Tolerances
from memgrid.log import get_logger
from memgrid.units import HostId, LeaseId, Reason, ReasonCode, UploadOrder
from memgrid_coordinator.heavy import check
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy import latecomers
from memgrid_coordinator.policy.life import (
    Changed,
    Confirmed,
    Impossible,
    Recalled,
    UnitEvent,
    UploadFailed,
    UploadVerified,
    claim_of,
)
from memgrid_coordinator.policy.quorum import Pair
from memgrid_coordinator.records import AuditPurpose, DoneAudit, Event, Lease, Unit, WantedAudit
from memgrid_coordinator.services import trusting
from memgrid_coordinator.services.auditing import Auditing, Concluded
from memgrid_coordinator.services.backlog import Backlog
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.evidence import Evidence, evidence_of, is_standing, located
from memgrid_coordinator.services.models import ModelFolders
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.services.tolerances import ModelTolerances
from memgrid_coordinator.store import audits, events, leases, trust_records, units, uploads
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
        clock: Clock,
        metrics: Metrics,
        catalogue: Catalogue,
        tolerances: ModelTolerances,
        bell: Bell,
        blobs: BlobStore,
        engine: Engine,
        replays: Engine,
        models: ModelFolders,
        rule: JudgingRule,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._catalogue = catalogue
        self._tolerances = tolerances
        self._bell = bell
        self._blobs = blobs
        self._engine = engine
        self._rule = rule
        self._progressed = True
        self._uncompared = Backlog("compare", self._compare, batch_max=BATCH_MAX)
        self._ordered = Backlog("look", self._look_for, batch_max=BATCH_MAX)
        self._unchecked = Backlog("check", self._check, batch_max=BATCH_MAX)
        self._auditing = Auditing(
            store=store,
            blobs=blobs,
            engine=replays,
            models=models,
            tolerances=tolerances,
            metrics=metrics,
            clock=clock,
            rule=rule,
            conclude=self._conclude,
        )

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
            self._metrics.count_accepted(unit.kind, tokens=unit.token_count, flops=unit.flops)
            log.debug("unit accepted", unit_key=unit.key)
        self._metrics.units_recalled.inc(settlement.recalled)
        self._metrics.cubes_retracted.inc(len(settlement.retracted))
        for unit in settlement.ended:
            self._metrics.units_given_up.labels(unit.kind).inc()
            log.info("unit ended without a result", unit_key=unit.key)
        if settlement.accepted or settlement.ended or settlement.retracted:
            self.note_progress()
        self._bell.ring_hosts(settlement.news_for)
        if settlement.work_opened:
            self._bell.ring_for_work()
        self._uncompared.add(settlement.compare)
        self._ordered.add(
            (lease.host_id, lease.lease_id, output.digest)
            for lease, wanted in settlement.ordered
            for output in wanted
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
            await self._receive([(host_id, lease_id, digest)])

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
        undecided, unjudged, received, overdue, suspended = await self._store.read(
            lambda connection: (
                units.undecided(connection, SWEPT_AT_ONCE),
                leases.unjudged(connection, SWEPT_AT_ONCE),
                uploads.received(connection, SWEPT_AT_ONCE),
                uploads.overdue(connection, now, SWEPT_AT_ONCE),
                trust_records.suspended(connection),
            )
        )
        if suspended:
            trust = self._rule.trust
            await self._store.write(lambda connection: trusting.resume_classes(connection, trust, now))
        self._uncompared.add([*undecided, *unjudged])
        self._unchecked.add(received)
        if overdue:
            reason = Reason(code=ReasonCode.UPLOAD_MISSING, text="the ordered output was not uploaded in time")
            await self._end_uploads(
                overdue, "refuse", lambda lease: UploadFailed(lease_id=lease.lease_id, reason=reason)
            )
        return len(undecided) + len(unjudged) + len(received) + len(overdue) + await self.audit()

    async def audit(self) -> int:
        """Take up the audits that are due; returns how many.

        Where nothing is open, no host will show with later work that an earlier result of its may stand: what waits
        for that is due too.
        """
        now = self._clock.now()
        idle = await self._store.read(
            lambda connection: audits.is_waiting(connection, now) and not units.has_vacancies(connection)
        )
        if idle:
            await self._store.write(lambda connection: audits.hurry(connection, now))
        return await self._auditing.look()

    async def close(self) -> None:
        """Wait for what is in hand."""
        for backlog in (self._ordered, self._uncompared, self._unchecked):
            await backlog.drained()
        await self._auditing.drained()

    async def _compare(self, unit_ids: list[int]) -> None:
        """Find out how the reports on some units differ, then settle them by that."""
        now = self._clock.now()
        found = await self._store.read(partial(units.by_id, unit_ids=unit_ids))
        limits = {model: await self._tolerances.of(model) for model in {unit.model for unit in found.values()}}
        questions = await self._store.read(partial(self._comparisons, found=found, limits=limits))
        answers = await self._engine.run(check.compare_all, questions)
        known: dict[Pair, Difference] = {pair: found for answer in answers for pair, found in answer.items()}
        happened = dict.fromkeys(unit_ids, Changed())
        settlement = await self._store.write(
            lambda connection: settle(connection, happened, known=known, rule=self._rule, now=now)
        )
        # Reports that came in between have not been compared: announcing starts the next round.
        self.announce(settlement)

    def _comparisons(
        self, connection: Connection, found: Mapping[int, Unit], limits: Mapping[Digest, Tolerances]
    ) -> list[check.Comparison]:
        of_unit = leases.of_units(connection, found)
        return [
            check.Comparison(
                claims=tuple(claim_of(lease) for lease in of_unit[unit.unit_id] if latecomers.has_a_say(lease)),
                spec=unit.spec,
                geometry=self._catalogue.geometry(connection, unit.model),
                tolerances=limits[unit.model],
                is_narrowed=self._rule.has_arbiter,
            )
            for unit in found.values()
        ]

    async def _look_for(self, ordered: list[tuple[HostId, LeaseId, Digest]]) -> None:
        """Where somebody made the very same bytes before, nothing has to travel."""
        here = await asyncio.to_thread(lambda: [one for one in ordered if self._blobs.renew(one[2])])
        if here:
            await self._receive(here)

    async def _receive(self, arrived: list[tuple[HostId, LeaseId, Digest]]) -> None:
        """These ordered outputs are in the content store; an order is received when all its files are."""
        now = self._clock.now()

        def step(connection: Connection) -> list[LeaseId]:
            found = leases.by_id(connection, {lease_id for _, lease_id, _ in arrived})
            theirs = [
                (lease_id, digest) for host_id, lease_id, digest in arrived if found[lease_id].host_id == host_id
            ]
            moved = sorted(uploads.receive(connection, theirs))
            events.append(connection, [_event("upload_received", found[lease_id], now) for lease_id in moved])
            return moved

        self._unchecked.add(await self._store.write(step))

    async def _check(self, lease_ids: list[LeaseId]) -> None:
        """Whether the bytes are what the reports said: their form, their sketches; and a part of them replayed."""
        found, geometries = await self._store.read(lambda connection: self._uploaded(connection, lease_ids))
        async with self._blobs.at_hand(digest for one in found for digest in one.digests()) as paths:
            missing = {one.lease.lease_id: reason for one in found if (reason := one.missing(paths)) is not None}
            present = [one for one in found if one.lease.lease_id not in missing]
            reasons = await self._engine.run(
                check.check_outputs,
                [
                    check.UploadedOutput(
                        spec=one.unit.spec,
                        files=located(one.files, paths),
                        inputs=located(one.inputs, paths),
                        sketch=one.lease.sketch,
                        geometry=geometries[one.unit.model],
                    )
                    for one in present
                ],
            )
        good = [one for one, reason in zip(present, reasons, strict=True) if reason is None]
        bad = {one.lease.lease_id: reason for one, reason in zip(present, reasons, strict=True) if reason is not None}
        await self._take([one for one in good if not one.is_to_be_audited()])
        await self._have_audited([one for one in good if one.is_to_be_audited()])
        if bad:
            await self._end_uploads(
                list(bad), "refuse", lambda lease: UploadFailed(lease_id=lease.lease_id, reason=bad[lease.lease_id])
            )
        if missing:
            await self._end_uploads(list(missing), "refuse", lambda lease: Impossible(reason=missing[lease.lease_id]))

    async def _take(self, good: list[Evidence]) -> None:
        """These need no audit now: others agree with them, or their hosts' records let them stand until one comes."""
        final = {one.lease.lease_id: one.unit.min_replicas > 1 for one in good}
        if final:
            await self._end_uploads(
                list(final),
                "verify",
                lambda lease: UploadVerified(lease_id=lease.lease_id, is_final=final[lease.lease_id]),
            )

    async def _have_audited(self, good: list[Evidence]) -> None:
        if not good:
            return
        now = self._clock.now()
        wanted = [
            WantedAudit(
                lease=one.lease,
                kind=one.unit.kind,
                purpose=AuditPurpose.DRAWN if one.lease.disputed is None else AuditPurpose.DISPUTED,
                due_at=now,
            )
            for one in good
        ]

        def step(connection: Connection) -> None:
            # Whoever looked twice finds it settled by the first audit.
            found = units.by_id(connection, {audit.lease.unit_id for audit in wanted})
            now_checked = [one for one in wanted if found[one.lease.unit_id].state is UnitState.CHECKING]
            audits.want(connection, now_checked)

        await self._store.write(step)
        await self.audit()

    def _uploaded(
        self, connection: Connection, lease_ids: list[LeaseId]
    ) -> tuple[list[Evidence], dict[Digest, ModelGeometry]]:
        found = evidence_of(connection, lease_ids)
        models = {one.unit.model for one in found}
        return found, {model: self._catalogue.geometry(connection, model) for model in models}

    async def _conclude(self, audited: WantedAudit, concluded: Concluded | None) -> None:
        """Keep what an audit came to, and do what follows for its unit, its host, and what the host did before."""
        now = self._clock.now()
        settlement = await self._store.write(lambda connection: self._follow(connection, audited, concluded, now))
        self.announce(settlement)
        if concluded is not None and concluded.zone is Zone.FAULT:
            await self.audit()  # what its host did before may be due now

    def _follow(
        self, connection: Connection, audited: WantedAudit, concluded: Concluded | None, now: datetime
    ) -> Settlement:
        lease = leases.by_id(connection, [audited.lease.lease_id])[audited.lease.lease_id]
        unit = units.by_id(connection, [lease.unit_id])[lease.unit_id]
        if concluded is None or not is_standing(unit, lease):
            audits.spare(connection, [lease.lease_id])
            return Settlement()
        done = DoneAudit(
            audit_id=audited.audit_id,
            lease_id=lease.lease_id,
            host_id=lease.host_id,
            purpose=audited.purpose,
            done_at=now,
            zone=concluded.zone,
            replays=concluded.replays,
        )
        if not audits.finish(connection, done):
            return Settlement()
        told = _event("audited", lease, now, concluded.reason, f"{concluded.zone}: {concluded.in_words()}")
        events.append(connection, [told])
        is_final = trusting.is_final_at_once(connection, lease, unit, self._rule.trust)
        follows: dict[int, UnitEvent] = {}
        reason = concluded.reason
        if reason is None:
            follows = trusting.after_audit(connection, audited, concluded.zone, self._rule.trust, now)
            own = follows.get(unit.unit_id)
            reason = own.reason if isinstance(own, Recalled) else None
        happened = follows | self._of_unit(connection, unit, lease, reason, is_final=is_final)
        settlement = settle(connection, happened, known={}, rule=self._rule, now=now)
        self._have_waiting_audited(connection, settlement.held, now)
        return settlement

    def _of_unit(
        self, connection: Connection, unit: Unit, lease: Lease, reason: Reason | None, *, is_final: bool
    ) -> dict[int, UnitEvent]:
        """What an audit means for the unit itself, by how far it has come."""
        if unit.state is UnitState.CHECKING:
            uploads.end(connection, [lease.lease_id], "verify" if reason is None else "refuse")
            if reason is None:
                return {unit.unit_id: UploadVerified(lease_id=lease.lease_id, is_final=is_final)}
            return {unit.unit_id: UploadFailed(lease_id=lease.lease_id, reason=reason)}
        if reason is not None:
            return {unit.unit_id: Recalled(reason=reason, is_wrong=reason.code is ReasonCode.REPLAY_DIFFERS)}
        return {unit.unit_id: Confirmed()} if unit.state is UnitState.PROVISIONAL else {}

    async def _end_uploads(
        self, lease_ids: list[LeaseId], verb: str, event_of: Callable[[Lease], UnitEvent], *, detail: str = ""
    ) -> None:
        """Move orders to their end and settle their units by it."""
        now = self._clock.now()

        def step(connection: Connection) -> Settlement:
            found = leases.by_id(connection, lease_ids)
            ended = uploads.end(connection, lease_ids, verb)
            moved = [lease for lease in found.values() if lease.lease_id in ended]
            happened = {lease.unit_id: event_of(lease) for lease in moved}
            settlement = settle(connection, happened, known={}, rule=self._rule, now=now)
            self._have_waiting_audited(connection, settlement.held, now)
            told = [_event(_ENDS[verb], lease, now, _reason(happened[lease.unit_id]), detail) for lease in moved]
            events.append(connection, told)
            return settlement

        self.announce(await self._store.write(step))

    def _have_waiting_audited(self, connection: Connection, held: list[Unit], now: datetime) -> None:
        """A provisional result is audited itself, unless later audits of its host make it final before."""
        found = units.by_id(connection, [unit.unit_id for unit in held])
        theirs = leases.by_id(
            connection, [unit.accepted_lease_id for unit in found.values() if unit.accepted_lease_id]
        )
        due_at = now + self._rule.trust.provisional_max
        audits.want(
            connection,
            [
                WantedAudit(lease=lease, kind=found[lease.unit_id].kind, purpose=AuditPurpose.WAITED, due_at=due_at)
                for lease in theirs.values()
            ],
        )


_ENDS = {"verify": "upload_verified", "refuse": "upload_failed"}


def _reason(event: UnitEvent) -> Reason | None:
    return event.reason if isinstance(event, UploadFailed | Impossible) else None


def _event(name: str, lease: Lease, now: datetime, reason: Reason | None = None, detail: str = "") -> Event:
    return Event(
        at=now,
        name=name,
        unit_id=lease.unit_id,
        lease_id=lease.lease_id,
        host_id=lease.host_id,
        reason=reason,
        detail=detail,
    )
