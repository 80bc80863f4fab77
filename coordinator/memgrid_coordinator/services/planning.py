"""Turn a campaign file and its sources into documents and units, and say what they would cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from memgrid.campaign import CampaignFile
from memgrid.clock import Clock
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.manifest import ADAPTER_FILE, CubeManifest, ParameterManifest
from memgrid.digest import Digest
from memgrid.errors import InvalidError, UnknownCubeError, UnknownSourceError
from memgrid.specs import AdapterKind
from memgrid_coordinator.heavy.plan import plan_activation
from memgrid_coordinator.heavy.plan_distill import plan_distill
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.heavy.sources import DocumentLimits, SourceFile, SourceFormat
from memgrid_coordinator.policy.deadlines import first_guess
from memgrid_coordinator.policy.manifests import parse_manifest
from memgrid_coordinator.recipes import activation, distill
from memgrid_coordinator.recipes.estimates import stages_of
from memgrid_coordinator.records import CampaignEstimate, Made, NewDocument, SubmittedSource
from memgrid_coordinator.services.asking import has_result
from memgrid_coordinator.services.gauging import ALIVE
from memgrid_coordinator.services.models import Models, PooledModel
from memgrid_coordinator.services.publishing import Publishing
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import calibrations, hosts, pool, units
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A campaign that could be created; `contents` are what its units and its engine will read."""

    documents: tuple[NewDocument, ...]
    contents: tuple[bytes, ...]
    identity: ModelIdentity
    model: PooledModel


class Planning:
    """Plans whole campaigns, or raises; nothing is stored here."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        clock: Clock,
        blobs: BlobStore,
        engine: Engine,
        models: Models,
        publishing: Publishing,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._blobs = blobs
        self._engine = engine
        self._models = models
        self._publishing = publishing

    async def plan(self, wanted: CampaignFile, sources: Sequence[SubmittedSource]) -> Planned:
        """Raises InvalidError, UnknownModelError, UnknownSourceError, UnknownCubeError (a distractor)."""
        async with self._blobs.at_hand(source.digest for source in sources) as paths:
            return await self._plan(wanted, [_source(source, paths) for source in sources])

    async def _plan(self, wanted: CampaignFile, files: list[SourceFile]) -> Planned:
        model = await self._models.find(wanted.model)
        folder = await self._models.folder_of(model)
        identity = await self._engine.run(identity_of_folder, folder, model.repository)
        limits = DocumentLimits(file_bytes=self._settings.source_bytes_max)
        contents: Iterable[bytes]
        if wanted.recipe == "distill":
            distractors = await self._distractors(wanted, identity)
            studied = distill.study_parameters(wanted, document_tokens_max=self._settings.document_tokens_max)
            talk = await self._engine.run(plan_distill, files, folder, identity, studied, limits)
            documents = distill.new_documents(talk, wanted, identity, distractors)
            contents = distill.blobs_of(talk)
        else:
            parameters = activation.plan_parameters(
                wanted,
                flops_per_s=await self._fleet_speed(),
                document_tokens_max=self._settings.document_tokens_max,
            )
            caches = await self._engine.run(plan_activation, files, folder, identity, parameters, limits)
            documents = activation.new_documents(caches)
            contents = (chunk.tokens for chunk in caches.chunks)
        return Planned(documents=documents, contents=tuple(contents), identity=identity, model=model)

    async def estimate(self, wanted: CampaignFile, sources: Sequence[SubmittedSource]) -> CampaignEstimate:
        """What `plan` would create, counted; raises what `plan` raises."""
        planned = await self.plan(wanted, sources)
        keys = [unit.key for document in planned.documents for unit in document.units]
        names = [f"{wanted.publish.namespace}/{document.name}" for document in planned.documents]
        since = self._clock.now() - ALIVE

        def query(connection: Connection) -> CampaignEstimate:
            known = units.by_key(connection, keys)
            is_calibrated = calibrations.latest(connection, planned.identity.digest) is not None
            present = {key for key, unit in known.items() if has_result(unit)}
            return CampaignEstimate(
                recipe=wanted.recipe,
                documents=len(planned.documents),
                tokens=sum(document.tokens for document in planned.documents),
                stages=stages_of(wanted, planned.documents, planned.identity, present, is_calibrated=is_calibrated),
                speeds=tuple(hosts.speeds_seen_since(connection, since)),
                documents_present=pool.count_cubes(connection, names, wanted.publish.version),
            )

        return await self._store.read(query)

    async def keep(self, planned: Planned) -> None:
        """Put what units will read where hosts fetch it, before any unit can be leased."""
        await asyncio.to_thread(self._blobs.put_all, planned.contents)

    async def _fleet_speed(self) -> float:
        """FLOP/s to size units for: a slow quarter of the hosts alive should still make the target."""
        since = self._clock.now() - ALIVE
        speeds = await self._store.read(lambda connection: hosts.speeds_seen_since(connection, since))
        return speeds[len(speeds) // 4] if speeds else first_guess(())

    async def _distractors(self, wanted: CampaignFile, base: ModelIdentity) -> list[Made]:
        """The adapters of the cubes that the campaign wants attached in training, pinned by digest."""
        return [
            await self._distractor(number, reference, base)
            for number, reference in enumerate(wanted.distill.train.distractors)
        ]

    async def _distractor(self, number: int, reference: str, base: ModelIdentity) -> Made:
        where = f"distill.train.distractors: {reference}"
        try:
            pushed = await self._publishing.resolve(reference)
        except UnknownCubeError:
            raise UnknownCubeError(f"{where}: there is no such cube in the pool") from None
        oci = parse_manifest(pushed.content, pushed.media_type)
        try:
            content = await asyncio.to_thread(self._blobs.read_bytes, oci.blobs[0].digest)
            cube = CubeManifest.from_bytes(content)
        except InvalidError:
            raise InvalidError(f"{where}: expected a cube") from None
        if not isinstance(cube, ParameterManifest) or cube.adapter.kind is not AdapterKind.PREFIX:
            raise InvalidError(f"{where}: expected a cube that is a trained prefix, found one of kind {cube.kind}")
        if cube.base.digest != base.digest:
            raise InvalidError(f"{where}: expected a cube for {base.name}, found one for {cube.base.name}")
        (tensors,) = (file.digest for file in cube.files if file.title == ADAPTER_FILE)
        detail = json.dumps({"cube": cube.digest, "reference": reference})
        return Made(name=f"{distill.DISTRACTOR}{number:04d}", digest=tensors, detail=detail)


def _source(source: SubmittedSource, paths: Mapping[Digest, Path]) -> SourceFile:
    try:
        form = SourceFormat(source.format)
    except ValueError:
        raise InvalidError(f"{source.uri}: expected txt, md, jsonl or parquet, found {source.format!r}") from None
    if source.digest not in paths:
        raise UnknownSourceError(f"{source.uri}: its content {source.digest} has not been pushed to the pool")
    return SourceFile(
        path=paths[source.digest],
        uri=source.uri,
        digest=source.digest,
        format=form,
        licence=source.licence,
        text_column=source.text_column or "text",
        id_column=source.id_column,
    )
