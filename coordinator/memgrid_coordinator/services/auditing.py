"""Replay a part of what hosts claim, one upload after another, so that quick comparisons need not wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from memgrid.clock import Clock
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.log import get_logger
from memgrid.units import LeaseId, Reason
from memgrid_coordinator.heavy.replay import Replayed, ReplayOrder, replay
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.services.backlog import Backlog
from memgrid_coordinator.services.evidence import Evidence, evidence_of, located
from memgrid_coordinator.services.models import ModelFolders
from memgrid_coordinator.services.ordering import UploadRule
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
_FIRST_PAUSE_S = 20.0
_LONGEST_PAUSE_S = 1800.0
Verdict = Callable[[LeaseId, Reason | None, str], Awaitable[None]]
"""Told of each lease how its replay ended, with the figures in words."""


class Auditing:
    """Replays what was received and has the right form. What a crash cuts off is still received at the next start."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        engine: Engine,
        models: ModelFolders,
        metrics: Metrics,
        clock: Clock,
        rule: UploadRule,
        verdict: Verdict,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._engine = engine
        self._models = models
        self._metrics = metrics
        self._clock = clock
        self._rule = rule
        self._verdict = verdict
        self._backlog = Backlog("audit", self._audit, batch_max=1)
        self._busy: set[LeaseId] = set()
        self._failures: dict[LeaseId, tuple[int, float]] = {}
        """Replays that came to no end here, how often, and until when to leave them alone."""

    @property
    def busy(self) -> frozenset[LeaseId]:
        """What waits here, is being replayed, or failed to be lately."""
        now_s = self._clock.monotonic_s()
        resting = {lease_id for lease_id, (_, until_s) in self._failures.items() if now_s < until_s}
        return frozenset(self._busy | resting)

    def add(self, lease_ids: Iterable[LeaseId]) -> None:
        new = [lease_id for lease_id in lease_ids if lease_id not in self._busy]
        self._busy.update(new)
        self._backlog.add(new)

    async def drained(self) -> None:
        """Return when nothing waits or runs."""
        await self._backlog.drained()

    async def _audit(self, lease_ids: list[LeaseId]) -> None:
        (lease_id,) = lease_ids
        times, _ = self._failures.pop(lease_id, (0, 0.0))
        try:
            (evidence,) = await self._store.read(partial(evidence_of, lease_ids=lease_ids))
            found = await self._replay(evidence)
            await self._verdict(lease_id, found.reason, _in_words(found))
        except Exception:
            # Not the host's fault, as far as one can tell: it waits, and others are replayed meanwhile.
            pause_s = min(_FIRST_PAUSE_S * 2.0**times, _LONGEST_PAUSE_S)
            self._failures[lease_id] = (times + 1, self._clock.monotonic_s() + pause_s)
            raise
        finally:
            self._busy.discard(lease_id)

    async def _replay(self, evidence: Evidence) -> Replayed:
        assert evidence.lease.facts is not None, f"lease {evidence.lease.lease_id} has not been reported"
        async with self._blobs.at_hand(evidence.digests()) as paths:
            order = ReplayOrder(
                spec=evidence.unit.spec,
                model_folder=await self._models.folder_of(evidence.unit.model),
                files=located(evidence.files, paths),
                inputs=located(evidence.inputs, paths),
                compute_dtype=evidence.lease.facts.compute_dtype,
                draw=self._rule.draw(evidence.lease),
                tolerances=BUILT_IN,
            )
            found = await self._engine.run(replay, order)
        answer = "agrees" if found.reason is None else found.reason.code.value
        kind = evidence.unit.kind
        self._metrics.audit_s.labels(kind, answer).observe(found.seconds)
        self._metrics.audit_flops.labels(kind).inc(0 if found.audit is None else found.audit.flops)
        self._metrics.audited_flops.labels(kind).inc(evidence.unit.flops)
        log.info("replayed", unit_key=evidence.unit.key, kind=kind, answer=answer, seconds=round(found.seconds, 2))
        return found


def _in_words(found: Replayed) -> str:
    """What was found beside what is allowed, the worst first."""
    figures = "" if found.audit is None else f"{found.audit.in_words()}, "
    return f"{figures}{found.seconds:.1f} s"
