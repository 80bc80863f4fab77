"""What lies in the content store for a reported unit: the files that were ordered, and those the unit reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from memgrid.digest import Digest
from memgrid.units import LeaseId, Reason, ReasonCode
from memgrid_coordinator.policy.kinds import kind_in
from memgrid_coordinator.records import Lease, Unit
from memgrid_coordinator.store import leases, units, uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """An uploaded answer; files and inputs by the names that the unit gives them."""

    lease: Lease
    unit: Unit
    files: Mapping[str, Digest]
    inputs: Mapping[str, Digest]

    def digests(self) -> Iterator[Digest]:
        """Everything that has to be at hand to judge it."""
        yield from self.files.values()
        yield from self.inputs.values()

    def missing(self, paths: Mapping[Digest, Path]) -> Reason | None:
        """Why the unit can't be judged here: an input of it has left the store."""
        for name, digest in self.inputs.items():
            if digest not in paths:
                return Reason(code=ReasonCode.STATE_MISSING, text=f"its input {name}, {digest[7:19]}, is gone")
        return None


def located(files: Mapping[str, Digest], paths: Mapping[Digest, Path]) -> dict[str, Path]:
    """Names with the files at hand; a file that is not leaves its name out."""
    return {name: paths[digest] for name, digest in files.items() if digest in paths}


def evidence_of(connection: Connection, lease_ids: Sequence[LeaseId]) -> list[Evidence]:
    """Of each of these leases, in no order."""
    found = leases.by_id(connection, lease_ids)
    of_unit = units.by_id(connection, {lease.unit_id for lease in found.values()})
    ordered = uploads.of_leases(connection, lease_ids)
    return [
        Evidence(
            lease=lease,
            unit=of_unit[lease.unit_id],
            files={output.name: output.digest for output in ordered.get(lease.lease_id, ())},
            inputs=_inputs(of_unit[lease.unit_id]),
        )
        for lease in found.values()
    ]


def _inputs(unit: Unit) -> dict[str, Digest]:
    spec, kind = kind_in(unit.spec)
    return {file.name: file.digest for file in kind.inputs(spec)}
