"""Gather everything that decides about a document, and say how far it is."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

from sqlalchemy import Connection

from memgrid.campaign import CampaignFile
from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.errors import UnknownIdError
from memgrid.kinds.trace import TRACE_FILE, StepTrace, read_trace
from memgrid.log import get_logger
from memgrid.specs import TrainSpec
from memgrid.units import LeaseId, Reason, ReasonCode
from memgrid_coordinator.lifecycle import CampaignState, DocumentState, UnitState
from memgrid_coordinator.policy.kinds import spec_in
from memgrid_coordinator.progress import LOSSES_MAX, thinned
from memgrid_coordinator.recipes import recipe_of
from memgrid_coordinator.recipes.distill import START_ADAPTER
from memgrid_coordinator.recipes.steps import Seen
from memgrid_coordinator.records import CampaignId, Document, Unit
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.store import campaigns, leases, units
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)


class Looking:
    """Reads documents as recipes see them."""

    def __init__(self, *, store: Store, clock: Clock, blobs: BlobStore, catalogue: Catalogue) -> None:
        self._store = store
        self._clock = clock
        self._blobs = blobs
        self._catalogue = catalogue

    def look(self, connection: Connection, document_id: int) -> Seen | None:
        """Everything stored about a document; None when nothing is to follow: it has ended, or is paused."""
        document = campaigns.document(connection, document_id)
        state = campaigns.state_of(connection, document.campaign_id)
        if document.state is not DocumentState.RUNNING or state is not CampaignState.RUNNING:
            return None
        return self.seen(connection, document)

    def seen(self, connection: Connection, document: Document) -> Seen:
        """The same, whatever its state."""
        campaign = campaign_in(campaigns.spec_of(connection, document.campaign_id))
        unit_ids = campaigns.units_of(connection, document.document_id)
        by_id = units.by_id(connection, unit_ids)
        return Seen(
            campaign=campaign,
            document=document,
            units=tuple(by_id[unit_id] for unit_id in unit_ids),
            made=campaigns.made_of(connection, document.document_id),
            base=self._catalogue.identity(connection, by_id[unit_ids[0]].model),
            now=self._clock.now(),
            spent=self.spent(connection, document.campaign_id, campaign),
            siblings=self._siblings(connection, document) if campaign.distill.train.siblings else {},
        )

    def spent(self, connection: Connection, campaign_id: CampaignId, campaign: CampaignFile) -> Reason | None:
        """Why nothing more may be spent on a campaign; None while something may."""
        budget = campaign.budget
        if budget.deadline is not None and self._clock.now() >= budget.deadline:
            text = f"the deadline {budget.deadline:%Y-%m-%d %H:%M:%S %Z} has passed"
            return Reason(code=ReasonCode.BUDGET_SPENT, text=text)
        if budget.device_hours is not None:
            hours = campaigns.device_hours(connection, campaign_id)
            if hours >= budget.device_hours:
                text = f"{hours:.3g} of {budget.device_hours:g} device-hours are spent"
                return Reason(code=ReasonCode.BUDGET_SPENT, text=text)
        return None

    def siblings_of(self, connection: Connection, document: Document) -> list[int]:
        """The other running documents of its campaign, if they look at each other."""
        campaign = campaign_in(campaigns.spec_of(connection, document.campaign_id))
        if not campaign.distill.train.siblings:
            return []
        return [
            other.document_id
            for other in campaigns.documents_of(connection, document.campaign_id)
            if other.document_id != document.document_id and other.state is DocumentState.RUNNING
        ]

    def _siblings(self, connection: Connection, document: Document) -> dict[str, Digest | None]:
        starts: dict[str, Digest | None] = {}
        for other in campaigns.documents_of(connection, document.campaign_id):
            made = campaigns.made_of(connection, other.document_id).get(START_ADAPTER)
            if other.document_id != document.document_id and (
                made is not None or other.state is DocumentState.RUNNING
            ):
                starts[other.name] = None if made is None else made.digest
        return starts

    async def note_progress(self, seen: Seen) -> None:
        """Keep how far a document is, if that has changed."""
        traces = await self._store.read(lambda connection: self.traces(connection, seen.units, LOSSES_MAX))
        progress = recipe_of(seen.campaign).progress(seen, thinned(mean_losses(traces)))
        if progress != seen.document.progress:
            document_id = seen.document.document_id
            await self._store.write(lambda connection: campaigns.set_progress(connection, document_id, progress))

    def traces(
        self, connection: Connection, found: tuple[Unit, ...], most: int | None = None
    ) -> list[tuple[TrainSpec, tuple[StepTrace, ...]]]:
        """What accepted train units told of their steps, in order; of at most so many of them, evenly spread."""
        done = [unit for unit in found if unit.kind == TrainSpec.kind and unit.state is UnitState.ACCEPTED]
        if most is not None and len(done) > most:
            done = [done[round(number * (len(done) - 1) / (most - 1))] for number in range(most)]
        accepted = [LeaseId(unit.accepted_lease_id) for unit in done if unit.accepted_lease_id is not None]
        by_id = leases.by_id(connection, accepted)
        told = []
        for unit in done:
            spec = spec_in(unit.spec)
            lease = by_id[LeaseId(unit.accepted_lease_id or "")]
            digest = next((output.digest for output in lease.outputs if output.name == TRACE_FILE), None)
            if isinstance(spec, TrainSpec) and digest is not None:
                with suppress(UnknownIdError):
                    told.append((spec, read_trace(self._blobs.read_bytes(digest))))
        return sorted(told, key=lambda one: (one[0].first_step, one[0].round, one[0].stream))


def mean_losses(traces: list[tuple[TrainSpec, tuple[StepTrace, ...]]]) -> list[tuple[int, float]]:
    """(step, loss) in order; where several members took the same step, their mean."""
    by_step: dict[int, list[float]] = {}
    for _, trace in traces:
        for entry in trace:
            by_step.setdefault(entry.step, []).append(entry.loss)
    return [(step, sum(losses) / len(losses)) for step, losses in sorted(by_step.items())]


def is_unchanged(connection: Connection, seen: Seen) -> bool:
    """Whether a document still runs, and nobody has taken it further since it was seen."""
    document_id = seen.document.document_id
    return (
        campaigns.document(connection, document_id).state is DocumentState.RUNNING
        and campaigns.state_of(connection, seen.document.campaign_id) is CampaignState.RUNNING
        and len(campaigns.units_of(connection, document_id)) == len(seen.units)
        and set(campaigns.made_of(connection, document_id)) == set(seen.made)
    )


@lru_cache(maxsize=256)
def campaign_in(spec: str) -> CampaignFile:
    """A stored campaign file; it never changes."""
    return CampaignFile.from_bytes(spec.encode())
