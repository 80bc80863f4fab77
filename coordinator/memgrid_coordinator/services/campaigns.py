"""Plan campaigns, watch them, cancel them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection

from memgrid.campaign import CampaignFile
from memgrid.clock import Clock
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.errors import AmbiguousIdError, InvalidError, NotAllowedError, UnknownCampaignError, UnknownSourceError
from memgrid.log import get_logger
from memgrid.units import BlobRef
from memgrid_coordinator.heavy.plan import ActivationPlan, plan_activation
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.heavy.sources import DocumentLimits, SourceFile, SourceFormat
from memgrid_coordinator.lifecycle import ENDED_CAMPAIGNS, DocumentState, UnitState
from memgrid_coordinator.policy.deadlines import first_guess
from memgrid_coordinator.policy.life import Withdrawn
from memgrid_coordinator.recipes import activation
from memgrid_coordinator.records import (
    Caller,
    Campaign,
    CampaignId,
    Event,
    NewDocument,
    Role,
    Submission,
    SubmittedSource,
)
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.gauging import ALIVE
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.models import Models, PooledModel
from memgrid_coordinator.services.ordering import UploadRule
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import campaigns, events, hosts, units
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
LISTED_MAX = 500
WATCH_EVERY = timedelta(milliseconds=500)
_REQUEST_ID_MAX = 64


class Campaigns:
    """What operators ask for."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        clock: Clock,
        blobs: BlobStore,
        engine: Engine,
        models: Models,
        catalogue: Catalogue,
        judging: Judging,
        bell: Bell,
        rule: UploadRule,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._blobs = blobs
        self._engine = engine
        self._models = models
        self._catalogue = catalogue
        self._judging = judging
        self._bell = bell
        self._new_id = new_id
        self._stopping = asyncio.Event()
        self._rule = rule

    async def submit(
        self, caller: Caller, *, request_id: str, campaign: bytes, sources: Sequence[SubmittedSource]
    ) -> Submission:
        """Plan a campaign whole, or raise and leave nothing; the same request again is the same campaign."""
        _only_operators(caller)
        if not 0 < len(request_id) <= _REQUEST_ID_MAX:
            raise InvalidError(f"request_id: expected 1 to {_REQUEST_ID_MAX} characters")
        known = await self._store.read(lambda connection: campaigns.of_request(connection, request_id))
        if known is not None:
            return Submission(campaign=await self._get(known), units_reused=0)
        wanted = CampaignFile.from_bytes(campaign)
        files = [self._source(source) for source in sources]
        model = await self._models.find(wanted.model)
        folder = await self._models.folder_of(model)
        identity = await self._engine.run(identity_of_folder, folder, model.repository)
        parameters = activation.plan_parameters(
            wanted,
            flops_per_s=await self._fleet_speed(),
            document_tokens_max=self._settings.document_tokens_max,
        )
        plan = await self._engine.run(plan_activation, files, folder, identity, parameters, self._limits())
        await asyncio.to_thread(self._keep_tokens, plan)
        documents = activation.new_documents(plan)
        campaign_id, reused = await self._store.write(
            partial(self._create, request_id, wanted, documents, identity, model)
        )
        self._bell.ring_for_work()
        self._judging.note_progress()
        log.info("campaign submitted", campaign_id=campaign_id, documents=len(documents), units_reused=reused)
        return Submission(campaign=await self._get(campaign_id), units_reused=reused)

    async def get(self, caller: Caller, campaign_id: str) -> Campaign:
        """A campaign by its id or a unique beginning of it."""
        _only_operators(caller)
        return await self._get(await self._find(campaign_id))

    async def newest(self, caller: Caller, limit: int) -> list[Campaign]:
        """Newest first."""
        _only_operators(caller)
        return await self.recent(min(limit or 50, LISTED_MAX))

    async def recent(self, limit: int = 10) -> list[Campaign]:
        """The newest campaigns, for the front page."""
        found = await self._store.read(lambda connection: campaigns.newest(connection, limit))
        return [await self._get(campaign_id) for campaign_id in found]

    async def watch(self, caller: Caller, campaign_id: str) -> AsyncIterator[Campaign]:
        """The campaign now, and again whenever it has changed, until it has ended."""
        _only_operators(caller)
        found = await self._find(campaign_id)
        shown: Campaign | None = None
        while not self._stopping.is_set():
            campaign = await self._get(found)
            if campaign != shown:
                yield campaign
                shown = campaign
            if campaign.state in ENDED_CAMPAIGNS:
                return
            try:
                async with asyncio.timeout(WATCH_EVERY.total_seconds()):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def pause(self, caller: Caller, campaign_id: str) -> Campaign:
        """Hand out nothing more for a campaign; what hosts hold they may finish, and are paid for."""
        return await self._hold(caller, campaign_id, "pause")

    async def resume(self, caller: Caller, campaign_id: str) -> Campaign:
        """Go on with a paused campaign."""
        campaign = await self._hold(caller, campaign_id, "resume")
        self._bell.ring_for_work()
        self._judging.note_progress()
        return campaign

    async def cancel(self, caller: Caller, campaign_id: str) -> Campaign:
        """End a campaign, and withdraw the units that nobody else wants."""
        _only_operators(caller)
        found = await self._find(campaign_id)
        self._judging.announce(await self._store.write(partial(self._cancel, found)))
        return await self._get(found)

    async def _hold(self, caller: Caller, campaign_id: str, verb: str) -> Campaign:
        _only_operators(caller)
        found = await self._find(campaign_id)
        now = self._clock.now()

        def step(connection: Connection) -> None:
            if campaigns.move(connection, found, verb, now):
                campaigns.hold_units(connection, found)
                events.append(connection, [Event(at=now, name=f"campaign_{verb}d", campaign_id=found)])

        await self._store.write(step)
        return await self._get(found)

    def drain(self) -> None:
        """End the watches: their clients come back to the next coordinator."""
        self._stopping.set()

    def _source(self, source: SubmittedSource) -> SourceFile:
        try:
            form = SourceFormat(source.format)
        except ValueError:
            raise InvalidError(f"{source.uri}: expected txt, md, jsonl or parquet, found {source.format!r}") from None
        if not self._blobs.has(source.digest):
            raise UnknownSourceError(f"{source.uri}: its content {source.digest} has not been pushed to the pool")
        return SourceFile(
            path=self._blobs.path_of(source.digest),
            uri=source.uri,
            digest=source.digest,
            format=form,
            licence=source.licence,
            text_column=source.text_column or "text",
            id_column=source.id_column,
        )

    def _limits(self) -> DocumentLimits:
        return DocumentLimits(file_bytes=self._settings.source_bytes_max)

    async def _fleet_speed(self) -> float:
        """FLOP/s to size units for: a slow quarter of the hosts alive should still make the target."""
        since = self._clock.now() - ALIVE
        speeds = await self._store.read(lambda connection: hosts.speeds_seen_since(connection, since))
        return speeds[len(speeds) // 4] if speeds else first_guess(())

    def _keep_tokens(self, plan: ActivationPlan) -> None:
        """Put the inputs of the units where hosts fetch them, before any unit can be leased."""
        for chunk in plan.chunks:
            self._blobs.put_bytes(chunk.tokens)

    def _create(
        self,
        request_id: str,
        wanted: CampaignFile,
        documents: Sequence[NewDocument],
        identity: ModelIdentity,
        model: PooledModel,
        connection: Connection,
    ) -> tuple[CampaignId, int]:
        now = self._clock.now()
        files = tuple(file for file in model.files if _is_for_workers(file))
        self._catalogue.add(connection, identity, model.repository, files)
        campaign_id = CampaignId(self._new_id())
        campaigns.add(
            connection,
            campaign_id,
            request_id=request_id,
            name=wanted.name,
            recipe=wanted.recipe,
            model=wanted.model,
            spec=wanted.to_bytes().decode(),
            priority=wanted.priority,
            now=now,
        )
        reused = self._create_units(connection, wanted, documents, now)
        created = units.by_key(connection, [unit.key for document in documents for unit in document.units])
        for document in documents:
            campaigns.add_document(
                connection, campaign_id, document, [created[unit.key].unit_id for unit in document.units]
            )
        detail = f"{wanted.name}: {len(documents)} documents, {len(created)} units, {reused} of them done before"
        submitted = Event(at=now, name="campaign_submitted", campaign_id=campaign_id, detail=detail)
        events.append(connection, [submitted])
        return campaign_id, reused

    def _create_units(
        self, connection: Connection, wanted: CampaignFile, documents: Sequence[NewDocument], now: datetime
    ) -> int:
        """Create what nobody asked for before, ask more of what is running; returns how many are done already."""
        asked = {unit.key: unit for unit in activation.new_units(documents)}
        known = units.by_key(connection, list(asked))
        priority, trust = wanted.priority, wanted.trust
        new = [unit for key, unit in asked.items() if key not in known]
        units.add(
            connection,
            new,
            priority=priority,
            min_replicas=trust.replicas(audited=False),
            max_replicas=trust.max_replicas,
        )
        lost = [unit.unit_id for unit in known.values() if unit.state in (UnitState.FAILED, UnitState.CANCELLED)]
        units.revive(connection, lost)
        running = [unit.unit_id for unit in known.values() if unit.state is not UnitState.ACCEPTED]
        units.demand_more(connection, running, priority=priority, min_replicas=trust.replicas(audited=False))
        every = [unit.unit_id for unit in units.by_key(connection, list(asked)).values()]
        opened = units.openable(connection, every)
        units.open_units(connection, opened, now)
        events.append(connection, [Event(at=now, name="unit_opened", unit_id=unit_id) for unit_id in opened])
        return sum(1 for unit in known.values() if unit.state is UnitState.ACCEPTED)

    def _cancel(self, campaign_id: CampaignId, connection: Connection) -> Settlement:
        now = self._clock.now()
        if not campaigns.move(connection, campaign_id, "cancel", now):
            return Settlement()
        for document in campaigns.documents_of(connection, campaign_id):
            campaigns.end_document(connection, document.document_id, DocumentState.CANCELLED)
        campaigns.hold_units(connection, campaign_id)
        events.append(connection, [Event(at=now, name="campaign_cancelled", campaign_id=campaign_id)])
        unwanted = dict.fromkeys(campaigns.unwanted_units(connection), Withdrawn())
        return settle(connection, unwanted, known={}, rule=self._rule, now=now)

    async def _find(self, prefix: str) -> CampaignId:
        found = await self._store.read(lambda connection: campaigns.beginning_with(connection, prefix))
        if not prefix or not found:
            raise UnknownCampaignError(f"there is no campaign {prefix[:80]!r}; see `memgrid campaign list`")
        if len(found) > 1:
            raise AmbiguousIdError(
                f"several campaigns begin with {prefix!r}: {', '.join(found)}; give more of the id"
            )
        return found[0]

    async def _get(self, campaign_id: CampaignId) -> Campaign:
        since = self._clock.now() - ALIVE

        def query(connection: Connection) -> Campaign:
            return campaigns.get(connection, campaign_id, fleet=hosts.speeds_seen_since(connection, since))

        return await self._store.read(query)


def _only_operators(caller: Caller) -> None:
    if caller.role is not Role.OPERATOR:
        raise NotAllowedError("campaigns need an operator token: --token, or MEMGRID_TOKEN")


def _is_for_workers(file: BlobRef) -> bool:
    """What computing needs of a model: weights and configuration; the text has become tokens already."""
    return file.name.endswith(".safetensors") or file.name in _WORKER_FILES


_WORKER_FILES = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json"})
