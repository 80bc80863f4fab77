"""Plan campaigns, watch them, pause, cancel and retry them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection

from memgrid.campaign import CampaignFile
from memgrid.clock import Clock
from memgrid.errors import AmbiguousIdError, InvalidError, UnknownCampaignError
from memgrid.log import get_logger
from memgrid.units import BlobRef
from memgrid_coordinator.lifecycle import ENDED_CAMPAIGNS, DocumentState
from memgrid_coordinator.policy import roles
from memgrid_coordinator.policy.life import Withdrawn
from memgrid_coordinator.records import (
    Caller,
    Campaign,
    CampaignEstimate,
    CampaignId,
    Event,
    Retried,
    Role,
    Submission,
    SubmittedSource,
)
from memgrid_coordinator.services.asking import ask_for
from memgrid_coordinator.services.bell import Bell
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.gauging import ALIVE
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.planning import Planned, Planning
from memgrid_coordinator.services.retrying import retry
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.store import audit_log, campaigns, events, hosts
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
LISTED_MAX = 500
WATCH_EVERY = timedelta(milliseconds=500)
WATCH_RESTS = 10
"""How many times as long as a look took a watcher waits for the next."""
_REQUEST_ID_MAX = 64


class Campaigns:
    """What operators ask for."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        planning: Planning,
        catalogue: Catalogue,
        judging: Judging,
        bell: Bell,
        rule: JudgingRule,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._clock = clock
        self._planning = planning
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
        roles.check(caller, Role.OPERATOR, "submitting campaigns")
        if not 0 < len(request_id) <= _REQUEST_ID_MAX:
            raise InvalidError(f"request_id: expected 1 to {_REQUEST_ID_MAX} characters")
        known = await self._store.read(lambda connection: campaigns.of_request(connection, request_id))
        if known is not None:
            return Submission(campaign=await self._get(known), units_reused=0)
        wanted = CampaignFile.from_bytes(campaign)
        planned = await self._planning.plan(wanted, sources)
        await self._planning.keep(planned)
        documents = planned.documents
        campaign_id, reused = await self._store.write(partial(self._create, caller, request_id, wanted, planned))
        self._bell.ring_for_work()
        self._judging.note_progress()
        log.info("campaign submitted", campaign_id=campaign_id, documents=len(documents), units_reused=reused)
        return Submission(campaign=await self._get(campaign_id), units_reused=reused)

    async def plan(self, caller: Caller, *, campaign: bytes, sources: Sequence[SubmittedSource]) -> CampaignEstimate:
        """What a campaign would cost; nothing is created. Raises what `submit` raises."""
        roles.check(caller, Role.OPERATOR, "planning campaigns")
        return await self._planning.estimate(CampaignFile.from_bytes(campaign), sources)

    async def get(self, caller: Caller, campaign_id: str) -> Campaign:
        """A campaign by its id or a unique beginning of it."""
        roles.check(caller, Role.READER, "seeing campaigns")
        return await self._get(await self._find(campaign_id))

    async def newest(self, caller: Caller, limit: int) -> list[Campaign]:
        """Newest first."""
        roles.check(caller, Role.READER, "seeing campaigns")
        return await self.recent(min(limit or 50, LISTED_MAX))

    async def recent(self, limit: int = 10) -> list[Campaign]:
        """The newest campaigns, for the front page."""
        found = await self._store.read(lambda connection: campaigns.newest(connection, limit))
        return [await self._get(campaign_id) for campaign_id in found]

    async def watch(self, caller: Caller, campaign_id: str) -> AsyncIterator[Campaign]:
        """The campaign now, and again whenever it has changed, until it has ended."""
        roles.check(caller, Role.READER, "seeing campaigns")
        found = await self._find(campaign_id)
        shown: Campaign | None = None
        while not self._stopping.is_set():
            began_s = self._clock.monotonic_s()
            campaign = await self._get(found)
            # Of very many units the sums take a while: others need the reader too.
            rest_s = WATCH_RESTS * (self._clock.monotonic_s() - began_s)
            if campaign != shown:
                yield campaign
                shown = campaign
            if campaign.state in ENDED_CAMPAIGNS:
                return
            try:
                async with asyncio.timeout(max(WATCH_EVERY.total_seconds(), rest_s)):
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
        roles.check(caller, Role.OPERATOR, "cancelling campaigns")
        found = await self._find(campaign_id)
        self._judging.announce(await self._store.write(partial(self._cancel, caller, found)))
        return await self._get(found)

    async def retry(self, caller: Caller, campaign_id: str, documents: Sequence[str] = ()) -> Retried:
        """Try failed documents again, all or those of these names; what was accepted stays. Raises InvalidError."""
        roles.check(caller, Role.OPERATOR, "trying documents again")
        found, now = await self._find(campaign_id), self._clock.now()
        tried, left = await self._store.write(lambda connection: retry(connection, caller, found, documents, now))
        if tried:
            self._bell.ring_for_work()
            self._judging.note_progress()
            log.info("documents tried again", campaign_id=found, documents=len(tried))
        names = tuple(document.name for document in tried)
        return Retried(campaign=await self._get(found), documents=names, left=tuple(left))

    async def _hold(self, caller: Caller, campaign_id: str, verb: str) -> Campaign:
        roles.check(caller, Role.OPERATOR, "pausing and resuming campaigns")
        found = await self._find(campaign_id)
        now = self._clock.now()

        def step(connection: Connection) -> None:
            if campaigns.move(connection, found, verb, now):
                campaigns.hold_units(connection, found)
                events.append(connection, [Event(at=now, name=f"campaign_{verb}d", campaign_id=found)])
                audit_log.note(connection, caller, f"campaign_{verb}", found, now)

        await self._store.write(step)
        return await self._get(found)

    def drain(self) -> None:
        """End the watches: their clients come back to the next coordinator."""
        self._stopping.set()

    def _create(
        self,
        caller: Caller,
        request_id: str,
        wanted: CampaignFile,
        planned: Planned,
        connection: Connection,
    ) -> tuple[CampaignId, int]:
        now = self._clock.now()
        documents, model = planned.documents, planned.model
        files = tuple(file for file in model.files if _is_for_workers(file))
        self._catalogue.add(connection, planned.identity, model.repository, files)
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
        asked = ask_for(connection, [unit for document in documents for unit in document.units], wanted, now)
        campaigns.add_documents(connection, campaign_id, documents, asked.unit_ids)
        reused = asked.reused
        detail = (
            f"{wanted.name}: {len(documents)} documents, {len(asked.unit_ids)} units, {reused} of them done before"
        )
        submitted = Event(at=now, name="campaign_submitted", campaign_id=campaign_id, detail=detail)
        events.append(connection, [submitted])
        audit_log.note(connection, caller, "campaign_submit", campaign_id, now, detail=wanted.name)
        return campaign_id, reused

    def _cancel(self, caller: Caller, campaign_id: CampaignId, connection: Connection) -> Settlement:
        now = self._clock.now()
        if not campaigns.move(connection, campaign_id, "cancel", now):
            return Settlement()
        for document in campaigns.documents_of(connection, campaign_id):
            campaigns.end_document(connection, document.document_id, DocumentState.CANCELLED)
        campaigns.hold_units(connection, campaign_id)
        events.append(connection, [Event(at=now, name="campaign_cancelled", campaign_id=campaign_id)])
        audit_log.note(connection, caller, "campaign_cancel", campaign_id, now)
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


def _is_for_workers(file: BlobRef) -> bool:
    """What computing needs of a model: weights and configuration; the text has become tokens already."""
    return file.name.endswith(".safetensors") or file.name in _WORKER_FILES


_WORKER_FILES = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json"})
