"""Replay a part of what hosts claim, one result after another, so that quick comparisons need not wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.part import Part
from memgrid.log import get_logger
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.heavy.replay import Replayed, ReplayOrder, replay
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.looks import next_look, zone_of
from memgrid_coordinator.records import AuditPurpose, Look, Replay, WantedAudit
from memgrid_coordinator.services.backlog import Backlog
from memgrid_coordinator.services.evidence import Evidence, evidence_of, is_standing, located
from memgrid_coordinator.services.models import ModelFolders
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.tolerances import ModelTolerances
from memgrid_coordinator.store import audits
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
AT_ONCE = 64
"""Audits that one look at the table takes up; the next look is soon."""
_FIRST_PAUSE_S = 20.0
_LONGEST_PAUSE_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluded:
    """What an audit came to: the zone of all its replays together, and the reason where it is a fault."""

    zone: Zone
    replays: tuple[Replay, ...]
    reason: Reason | None = None

    def in_words(self) -> str:
        """The last replay, which decided."""
        last = self.replays[-1]
        return f"{last.in_words}, {sum(replay.seconds for replay in self.replays):.1f} s"


Conclude = Callable[[WantedAudit, Concluded | None], Awaitable[None]]
"""Told of each audit what it came to; None when there is nothing left to look at."""


class Auditing:
    """Does the audits that stand in the table. What a crash cuts off is still wanted at the next start."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        engine: Engine,
        models: ModelFolders,
        tolerances: ModelTolerances,
        metrics: Metrics,
        clock: Clock,
        rule: JudgingRule,
        conclude: Conclude,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._engine = engine
        self._models = models
        self._tolerances = tolerances
        self._metrics = metrics
        self._clock = clock
        self._rule = rule
        self._conclude = conclude
        self._backlog = Backlog("audit", self._audit, batch_max=1)
        self._busy: set[int] = set()
        self._failures: dict[int, tuple[int, float]] = {}
        """Audits that came to no end here, how often, and until when to leave them alone."""

    async def look(self) -> int:
        """Take up what is due; returns how much that is."""
        now_s = self._clock.monotonic_s()
        resting = {audit_id for audit_id, (_, until_s) in self._failures.items() if now_s < until_s}
        most = AT_ONCE + len(resting)
        due = await self._store.read(lambda connection: audits.due(connection, self._clock.now(), most))
        new = [audit for audit in due if audit.audit_id not in self._busy | resting]
        self._busy.update(audit.audit_id for audit in new)
        self._backlog.add(new)
        return len(new)

    async def drained(self) -> None:
        """Return when nothing waits or runs."""
        await self._backlog.drained()

    async def _audit(self, wanted: list[WantedAudit]) -> None:
        (audit,) = wanted
        times, _ = self._failures.pop(audit.audit_id, (0, 0.0))
        try:
            evidence, number = await self._store.read(lambda connection: _evidence(connection, audit))
            is_needed = is_standing(evidence.unit, evidence.lease)
            part = evidence.lease.disputed if audit.purpose is AuditPurpose.DISPUTED else None
            await self._conclude(audit, await self._look_at(evidence, number, part) if is_needed else None)
        except Exception:
            # Not the host's fault, as far as one can tell: it waits, and others are replayed meanwhile.
            pause_s = min(_FIRST_PAUSE_S * 2.0**times, _LONGEST_PAUSE_S)
            self._failures[audit.audit_id] = (times + 1, self._clock.monotonic_s() + pause_s)
            raise
        finally:
            self._busy.discard(audit.audit_id)

    async def _look_at(self, evidence: Evidence, number: int, part: Part | None) -> Concluded | None:
        """Replay until enough was seen, a disputed part first.

        `number` is that of the first draw that no audit of this result has used.
        """
        tolerances = await self._tolerances.of(evidence.unit.model)
        async with self._blobs.at_hand(evidence.every_digest()) as paths:
            if not evidence.is_whole(paths):
                return None
            order = ReplayOrder(
                spec=evidence.unit.spec,
                model_folder=await self._models.folder_of(evidence.unit.model),
                files=located(evidence.files, paths),
                inputs=located(evidence.read(), paths),
                compute_dtype=evidence.facts.compute_dtype,
                draw=b"",
                tolerances=tolerances,
            )
            replays: list[Replay] = []
            while (look := next_look([(replay.look, replay.zone) for replay in replays])) is not None:
                number += look is Look.ELSEWHERE and evidence.is_all_there
                again = look is Look.AGAIN or (look is Look.ELSEWHERE and not evidence.is_all_there)
                if look is Look.ELSEWHERE and evidence.is_all_there:
                    part = None
                drawn = replace(order, draw=self._rule.draw(evidence.lease, number), again=again, part=part)
                found = await self._replay(evidence, drawn)
                if found.audit is None:  # not even the unit's form, which is no matter of numbers
                    return Concluded(zone=Zone.FAULT, replays=tuple(replays), reason=found.refused)
                replays.append(_record(found.audit, found.seconds, look, number))
        zone = zone_of([(replay.look, replay.zone) for replay in replays])
        differs = Reason(code=ReasonCode.REPLAY_DIFFERS, text=replays[-1].in_words)
        return Concluded(zone=zone, replays=tuple(replays), reason=differs if zone is Zone.FAULT else None)

    async def _replay(self, evidence: Evidence, order: ReplayOrder) -> Replayed:
        found = await self._engine.run(replay, order)
        kind = evidence.unit.kind
        answer = "refused" if found.audit is None else found.audit.zone.value
        self._metrics.audit_s.labels(kind, answer).observe(found.seconds)
        self._metrics.audit_flops.labels(kind).inc(found.audit.flops if found.audit else 0)
        self._metrics.audited_flops.labels(kind).inc(evidence.unit.flops)
        log.info("replayed", unit_key=evidence.unit.key, kind=kind, answer=answer, seconds=round(found.seconds, 2))
        return found


def _evidence(connection: Connection, audit: WantedAudit) -> tuple[Evidence, int]:
    """What lies here of a result, and how many draws its audits have used."""
    (evidence,) = evidence_of(connection, [audit.lease.lease_id])
    # Of what was fetched in part only the first draw's part is here.
    return evidence, audits.draws_used(connection, audit.lease.lease_id) if evidence.is_all_there else 0


def _record(audit: Audit, seconds: float, look: Look, number: int) -> Replay:
    return Replay(
        draw=number,
        look=look,
        zone=audit.zone,
        statistics=audit.statistics,
        limits=audit.limits,
        in_words=audit.in_words(),
        seconds=seconds,
        flops=audit.flops,
    )
