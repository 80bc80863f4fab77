"""The end of documents: the cube that one became, or the reason why it became none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.cube.oci import OCI_MANIFEST_TYPE
from memgrid.log import get_logger
from memgrid.units import Reason
from memgrid_coordinator.heavy.assemble import AssembledCube
from memgrid_coordinator.lifecycle import CampaignState, DocumentState
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.life import Withdrawn
from memgrid_coordinator.recipes.facts import cube_facts
from memgrid_coordinator.recipes.steps import Seen
from memgrid_coordinator.records import CampaignId, Document, Event
from memgrid_coordinator.services.assembling import Assembling
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.looking import Looking, campaign_in
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.store import campaigns, events
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)


class Finishing:
    """Publishes cubes and gives documents up. Every step may run twice: cubes are named by their content."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        blobs: BlobStore,
        looking: Looking,
        assembling: Assembling,
        publishing: Publishing,
        judging: Judging,
        rule: JudgingRule,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._blobs = blobs
        self._looking = looking
        self._assembling = assembling
        self._publishing = publishing
        self._judging = judging
        self._rule = rule

    async def publish(self, seen: Seen) -> None:
        """Make the cube of a document and let everybody see it."""
        cube = await self._assembling.assemble(seen)
        manifest = cube.manifest
        for content in cube.blobs:
            await asyncio.to_thread(self._blobs.put_bytes, content)
        await self._publishing.publish_cube(
            repository=manifest.name,
            version=manifest.version,
            tags=("latest",),
            manifest=cube.oci,
            media_type=OCI_MANIFEST_TYPE,
            facts=cube_facts(manifest),
        )
        name = f"{manifest.name}:{manifest.version}"
        if await self._store.write(lambda connection: self._note_published(connection, seen.document, name, cube)):
            self._metrics.cubes_published.labels(manifest.kind.value).inc()
            log.info("cube published", cube=name, digest=cube.digest)

    async def fail(self, document: Document, reason: Reason) -> None:
        """Give a document up, and withdraw what only it wanted."""
        log.warning("document failed", document=document.name, reason=reason.code.value, text=reason.text)
        self._judging.announce(await self._store.write(lambda connection: self._fail(connection, [document], reason)))
        self._judging.note_progress()

    async def stop_overspent(self) -> int:
        """End the activation campaigns that have spent their budget; how others end, their recipes say."""
        over = await self._store.read(self._overspent)
        for documents, reason in over:
            self._judging.announce(await self._store.write(partial(self._fail, documents=documents, reason=reason)))
        return len(over)

    def _overspent(self, connection: Connection) -> list[tuple[list[Document], Reason]]:
        found = []
        for campaign_id, spec in campaigns.in_state(connection, CampaignState.RUNNING):
            campaign = campaign_in(spec)
            reason = self._looking.spent(connection, campaign_id, campaign)
            if campaign.recipe == "activation" and reason is not None:
                found.append((campaigns.documents_of(connection, campaign_id), reason))
        return found

    def _note_published(self, connection: Connection, document: Document, name: str, cube: AssembledCube) -> bool:
        if not campaigns.end_document(
            connection, document.document_id, DocumentState.PUBLISHED, cube=name, cube_digest=cube.digest
        ):
            return False
        published = Event(
            at=self._clock.now(),
            name="cube_published",
            campaign_id=document.campaign_id,
            cube_digest=cube.digest,
            detail=name,
        )
        events.append(connection, [published])
        return True

    def _fail(self, connection: Connection, documents: Iterable[Document], reason: Reason) -> Settlement:
        now = self._clock.now()
        told = []
        for document in documents:
            if campaigns.end_document(connection, document.document_id, DocumentState.FAILED, reason=reason):
                told.append(_failed(document, reason, self._clock))
        events.append(connection, told)
        # What else it wanted may be wanted by nobody now.
        withdrawn = Withdrawn(reason=Reason(code=reason.code, text=f"its document failed: {reason.text}"))
        unwanted = dict.fromkeys(campaigns.unwanted_units(connection), withdrawn)
        return settle(connection, unwanted, known={}, rule=self._rule, now=now)


def _failed(document: Document, reason: Reason, clock: Clock) -> Event:
    campaign_id: CampaignId = document.campaign_id
    return Event(at=clock.now(), name="document_failed", campaign_id=campaign_id, reason=reason, detail=document.name)
