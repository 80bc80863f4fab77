"""What lies in the content store for a reported unit: the files that were ordered, and those the unit reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from memgrid.units import LeaseId, Reason, ReasonCode
from memgrid_coordinator.policy.kinds import kind_in
from memgrid_coordinator.records import Lease, Unit
from memgrid_coordinator.store import leases, units, uploads
from memgrid_coordinator.store.blobs import BlobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """An uploaded answer; files and inputs by the names that the unit gives them."""

    lease: Lease
    unit: Unit
    files: Mapping[str, Path]
    inputs: Mapping[str, Path]

    def missing(self) -> Reason | None:
        """Why the unit can't be judged here: an input of it has left the store."""
        for name, path in self.inputs.items():
            if not path.is_file():
                return Reason(code=ReasonCode.STATE_MISSING, text=f"its input {name}, {path.name[:12]}, is gone")
        return None


def evidence_of(connection: Connection, blobs: BlobStore, lease_ids: Sequence[LeaseId]) -> list[Evidence]:
    """Of each of these leases, in no order."""
    found = leases.by_id(connection, lease_ids)
    of_unit = units.by_id(connection, {lease.unit_id for lease in found.values()})
    ordered = uploads.of_leases(connection, lease_ids)
    return [
        Evidence(
            lease=lease,
            unit=of_unit[lease.unit_id],
            files={output.name: blobs.path_of(output.digest) for output in ordered.get(lease.lease_id, ())},
            inputs=_inputs(of_unit[lease.unit_id], blobs),
        )
        for lease in found.values()
    ]


def _inputs(unit: Unit, blobs: BlobStore) -> dict[str, Path]:
    spec, kind = kind_in(unit.spec)
    return {file.name: blobs.path_of(file.digest) for file in kind.inputs(spec)}
