"""Make cubes of what is stored about finished documents: their results, and what was seen on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from memgrid.cube.provenance import key_id_of
from memgrid.signing import SigningKey
from memgrid.specs import PrefillSpec
from memgrid_coordinator.heavy import check
from memgrid_coordinator.heavy.assemble import AssembledCube, Making, assemble_cube
from memgrid_coordinator.heavy.assemble_adapter import assemble_adapter
from memgrid_coordinator.heavy.runner import Engine
from memgrid_coordinator.lifecycle import LeaseState
from memgrid_coordinator.policy.life import claim_of
from memgrid_coordinator.recipes import activation, distill_cube
from memgrid_coordinator.recipes.steps import Seen
from memgrid_coordinator.records import Lease, Unit
from memgrid_coordinator.services.looking import Looking
from memgrid_coordinator.services.tolerances import ModelTolerances
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store import hosts, leases
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class _History:
    """What the grid saw while the units of a document were computed."""

    leases: list[Lease]
    hosts: tuple[str, ...]


class Assembling:
    """Writes nothing but the cube's own bytes: whoever publishes it keeps them."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        blobs: BlobStore,
        engine: Engine,
        looking: Looking,
        tolerances: ModelTolerances,
        grid_key: SigningKey,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._engine = engine
        self._looking = looking
        self._tolerances = tolerances
        self._grid_key = grid_key
        self._builder = f"memgrid:{settings.name}"

    async def assemble(self, seen: Seen) -> AssembledCube:
        """The cube of a document that has everything it needs; the same document, the same cube."""
        history = await self._store.read(lambda connection: self._history(connection, seen.units))
        making = await self._making(seen, history)
        source_bytes = await asyncio.to_thread(self._blobs.size_of, seen.document.source_digest)
        if seen.campaign.recipe == "activation":
            tokens = await asyncio.to_thread(self._tokens, seen.units)
            return assemble_cube(
                activation.assembly_order(
                    campaign=seen.campaign,
                    document=seen.document,
                    units=seen.units,
                    tokens=tokens,
                    base=seen.base,
                    source_bytes=source_bytes,
                    tolerances=await self._tolerances.of(seen.base.digest),
                    making=making,
                ),
                self._grid_key,
            )
        traces = await self._store.read(lambda connection: self._looking.traces(connection, seen.units))
        order = distill_cube.adapter_order(
            seen,
            config=await asyncio.to_thread(self._blobs.read_bytes, seen.made["config"].digest),
            tensors_bytes=await asyncio.to_thread(self._blobs.size_of, seen.made["adapter"].digest),
            traces=traces,
            source_bytes=source_bytes,
            making=making,
        )
        # Its plots take a second; the key stays in this process all the same.
        return await asyncio.to_thread(assemble_adapter, order, self._grid_key)

    def _tokens(self, units: Sequence[Unit]) -> list[bytes]:
        return [self._blobs.read_bytes(PrefillSpec.from_bytes(unit.spec).tokens) for unit in units]

    def _history(self, connection: Connection, units: Sequence[Unit]) -> _History:
        of_unit = leases.of_units(connection, [unit.unit_id for unit in units])
        found = [lease for unit in units for lease in of_unit[unit.unit_id]]
        agreed = {lease.host_id for lease in found if lease.state is LeaseState.AGREED}
        keys = [host.public_key for host_id in sorted(agreed) if (host := hosts.get_host(connection, host_id))]
        return _History(leases=found, hosts=tuple(sorted({key_id_of(key) for key in keys})))

    async def _making(self, seen: Seen, history: _History) -> Making:
        """What was seen while the units were computed; measured, so it is no part of the cube's identity."""
        flops = {unit.unit_id: unit.flops for unit in seen.units}
        reported = [lease for lease in history.leases if lease.facts is not None]
        agreed = [lease for lease in reported if lease.state is LeaseState.AGREED]
        seconds: dict[str, float] = {}
        for facts in (lease.facts for lease in reported if lease.facts is not None):
            seconds[facts.device_kind] = seconds.get(facts.device_kind, 0.0) + facts.compute_s
        return Making(
            builder=self._builder,
            campaign=seen.document.campaign_id,
            started_at=min(lease.granted_at for lease in history.leases),
            finished_at=max(lease.reported_at for lease in agreed if lease.reported_at is not None),
            replicas=len(agreed),
            reports_rejected=sum(1 for lease in reported if lease.state is LeaseState.REJECTED),
            spent_flops=sum(flops[lease.unit_id] for lease in reported),
            device_seconds=seconds,
            hosts=history.hosts,
            largest_distance=await self._largest_distance(seen, agreed),
        )

    async def _largest_distance(self, seen: Seen, agreed: list[Lease]) -> float:
        """Between two agreeing reports of a unit, as a share of what is allowed; mostly nought, by equal digests."""
        largest = 0.0
        for unit in seen.units:
            claims = [claim_of(lease) for lease in agreed if lease.unit_id == unit.unit_id]
            if len({claim.output_digest for claim in claims}) > 1:
                allowed = await self._tolerances.of(seen.base.digest)
                asked = check.Comparison(
                    claims=tuple(claims), spec=unit.spec, geometry=seen.base.geometry, tolerances=allowed
                )
                known = await self._engine.run(check.compare, asked)
                largest = max([largest, *(difference.distance for difference in known.values())])
        return largest
