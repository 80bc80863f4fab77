"""Make cubes of finished documents, and end campaigns whose documents have all ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from memgrid.campaign import CampaignFile
from memgrid.clock import Clock
from memgrid.cube.identity import ModelIdentity
from memgrid.cube.oci import OCI_MANIFEST_TYPE
from memgrid.cube.provenance import key_id_of
from memgrid.digest import Digest
from memgrid.log import get_logger
from memgrid.signing import SigningKey
from memgrid.specs import PrefillSpec
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.heavy import check
from memgrid_coordinator.heavy.assemble import AssembledCube, Making, assemble_cube
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.lifecycle import CAMPAIGN_MOVES, DocumentState, LeaseState
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.life import Withdrawn, claim_of
from memgrid_coordinator.recipes import activation
from memgrid_coordinator.records import CampaignId, Document, Event, Lease, Unit
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.ordering import UploadRule
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import campaigns, events, hosts, leases, units
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
DOCUMENTS_AT_ONCE = 16
"""Documents one run of the sweep takes up: the next run comes soon."""
LOOK_EVERY = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """A document whose units are all accepted, and everything that was stored about them."""

    document: Document
    campaign: CampaignFile
    units: list[Unit]
    leases: list[Lease]
    base: ModelIdentity
    hosts: tuple[str, ...]


class Assembling:
    """Turns accepted units into published cubes. Every step may run twice: cubes are named by their content."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        blobs: BlobStore,
        engine: Engine,
        catalogue: Catalogue,
        publishing: Publishing,
        judging: Judging,
        grid_key: SigningKey,
        rule: UploadRule,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._blobs = blobs
        self._engine = engine
        self._catalogue = catalogue
        self._publishing = publishing
        self._judging = judging
        self._grid_key = grid_key
        self._look_at = clock.now()
        self._builder = f"memgrid:{settings.name}"
        self._rule = rule

    async def assemble_complete(self) -> int:
        """Publish what is complete, give up what is hopeless, end what has ended; returns how many moves.

        It looks when a unit has ended since, and now and then all the same: a run may have been cut off.
        """
        if not self._judging.take_progress() and self._clock.now() < self._look_at:
            return 0
        self._look_at = self._clock.now() + LOOK_EVERY
        complete, hopeless = await self._store.read(
            lambda connection: (
                campaigns.complete_documents(connection, DOCUMENTS_AT_ONCE),
                campaigns.hopeless_documents(connection),
            )
        )
        for document_id in complete:
            await self._publish(document_id)
        if hopeless:
            self._judging.announce(await self._store.write(lambda connection: self._give_up(connection, hopeless)))
        if len(complete) == DOCUMENTS_AT_ONCE:
            self._judging.note_progress()
        ended = await self._end_campaigns()
        return len(complete) + len(hopeless) + ended

    async def _publish(self, document_id: int) -> None:
        finished = await self._store.read(lambda connection: self._finished(connection, document_id))
        document, campaign = finished.document, finished.campaign
        order = activation.assembly_order(
            campaign=campaign,
            document=document,
            units=finished.units,
            tokens=[self._blobs.read_bytes(PrefillSpec.from_bytes(unit.spec).tokens) for unit in finished.units],
            base=finished.base,
            source_bytes=self._blobs.size_of(document.source_digest),
            making=await self._making(finished),
        )
        cube = assemble_cube(order, self._grid_key)
        for content in cube.blobs:
            await asyncio.to_thread(self._blobs.put_bytes, content)
        await self._publishing.publish_cube(
            repository=order.name,
            version=order.version,
            tags=("latest",),
            manifest=cube.oci,
            media_type=OCI_MANIFEST_TYPE,
            facts=activation.cube_facts(cube.manifest),
        )
        if await self._store.write(
            lambda connection: self._note_published(connection, document, f"{order.name}:{order.version}", cube)
        ):
            self._metrics.cubes_published.labels(cube.manifest.kind.value).inc()
            log.info("cube published", cube=f"{order.name}:{order.version}", digest=cube.digest)

    def _finished(self, connection: Connection, document_id: int) -> _Finished:
        document = campaigns.document(connection, document_id)
        unit_ids = campaigns.units_of(connection, document_id)
        by_id = units.by_id(connection, unit_ids)
        of_unit = leases.of_units(connection, by_id)
        found = [lease for unit_id in by_id for lease in of_unit[unit_id]]
        agreed = {lease.host_id for lease in found if lease.state is LeaseState.AGREED}
        keys = [host.public_key for host_id in sorted(agreed) if (host := hosts.get_host(connection, host_id))]
        return _Finished(
            document=document,
            campaign=CampaignFile.from_bytes(campaigns.spec_of(connection, document.campaign_id).encode()),
            units=[by_id[unit_id] for unit_id in unit_ids],
            leases=found,
            base=self._catalogue.identity(connection, by_id[unit_ids[0]].model),
            hosts=tuple(sorted({key_id_of(key) for key in keys})),
        )

    async def _making(self, finished: _Finished) -> Making:
        """What was seen while the units were computed; measured, so it is no part of the cube's identity."""
        flops = {unit.unit_id: unit.flops for unit in finished.units}
        reported = [lease for lease in finished.leases if lease.facts is not None]
        agreed = [lease for lease in reported if lease.state is LeaseState.AGREED]
        seconds: dict[str, float] = {}
        for facts in (lease.facts for lease in reported if lease.facts is not None):
            seconds[facts.device_kind] = seconds.get(facts.device_kind, 0.0) + facts.compute_s
        return Making(
            builder=self._builder,
            campaign=finished.document.campaign_id,
            started_at=min(lease.granted_at for lease in finished.leases),
            finished_at=max(lease.reported_at for lease in agreed if lease.reported_at is not None),
            replicas=len(agreed),
            reports_rejected=sum(1 for lease in reported if lease.state is LeaseState.REJECTED),
            spent_flops=sum(flops[lease.unit_id] for lease in reported),
            device_seconds=seconds,
            hosts=finished.hosts,
            largest_distance=await self._largest_distance(finished, agreed),
        )

    async def _largest_distance(self, finished: _Finished, agreed: list[Lease]) -> float:
        """Between two agreeing reports of a unit, as a share of what is allowed; mostly nought, by equal digests."""
        largest = 0.0
        for unit in finished.units:
            claims = [claim_of(lease) for lease in agreed if lease.unit_id == unit.unit_id]
            if len({claim.output_digest for claim in claims}) > 1:
                asked = check.Comparison(claims=tuple(claims), spec=unit.spec, geometry=finished.base.geometry)
                known = await self._engine.run(check.compare, asked)
                largest = max([largest, *(difference.distance for difference in known.values())])
        return largest

    def _note_published(self, connection: Connection, document: Document, name: str, cube: AssembledCube) -> bool:
        digest: Digest = cube.digest
        if not campaigns.end_document(
            connection, document.document_id, DocumentState.PUBLISHED, cube=name, cube_digest=digest
        ):
            return False
        published = Event(
            at=self._clock.now(),
            name="cube_published",
            campaign_id=document.campaign_id,
            cube_digest=digest,
            detail=name,
        )
        events.append(connection, [published])
        return True

    def _give_up(self, connection: Connection, hopeless: list[tuple[int, str]]) -> Settlement:
        """A document with a failed unit can't become a cube; what else it wanted may be wanted by nobody now."""
        now = self._clock.now()
        for document_id, unit_key in hopeless:
            document = campaigns.document(connection, document_id)
            reason = Reason(
                code=ReasonCode.NO_AGREEMENT, text=f"unit {unit_key[:12]} failed; see memgrid explain {unit_key[:12]}"
            )
            campaigns.end_document(connection, document_id, DocumentState.FAILED, reason=reason)
            failed = Event(
                at=now,
                name="document_failed",
                campaign_id=document.campaign_id,
                reason=reason,
                detail=document.name,
            )
            events.append(connection, [failed])
        unwanted = dict.fromkeys(campaigns.unwanted_units(connection), Withdrawn())
        return settle(connection, unwanted, known={}, rule=self._rule, now=now)

    async def _end_campaigns(self) -> int:
        """Campaigns without a running document are over: completed, if every document has its cube."""
        over = await self._store.read(campaigns.without_running_documents)
        if over:
            await self._store.write(lambda connection: self._end(connection, over))
        return len(over)

    def _end(self, connection: Connection, over: list[tuple[CampaignId, bool]]) -> None:
        now = self._clock.now()
        for campaign_id, has_failures in over:
            verb = "fail" if has_failures else "complete"
            state = CAMPAIGN_MOVES[verb][1]
            if campaigns.move(connection, campaign_id, verb, now):
                events.append(connection, [Event(at=now, name=f"campaign_{state}", campaign_id=campaign_id)])
                log.info("campaign ended", campaign_id=campaign_id, state=state.value)
