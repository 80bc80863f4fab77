"""What lies in the content store for a reported unit: the files that were ordered, and those the unit reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from memgrid.digest import Digest
from memgrid.kinds.prefill import past_file
from memgrid.units import LeaseId, Reason, ReasonCode, WorkFacts
from memgrid_coordinator.lifecycle import HAVE_RESULTS, LeaseState, UnitState
from memgrid_coordinator.policy.kinds import is_always_audited, kind_in
from memgrid_coordinator.records import Lease, Unit
from memgrid_coordinator.store import leases, units, uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """An uploaded answer; files, inputs and the caches it continues, by their names in the unit's folder."""

    lease: Lease
    unit: Unit
    files: Mapping[str, Digest]
    inputs: Mapping[str, Digest]
    past: Mapping[str, Digest | None]
    """None for a cache that was recalled or lost."""

    def digests(self) -> Iterator[Digest]:
        """What has to be at hand to check its form."""
        yield from self.files.values()
        yield from self.inputs.values()

    def every_digest(self) -> Iterator[Digest]:
        """What has to be at hand to compute a part of it again."""
        yield from self.digests()
        yield from (digest for digest in self.past.values() if digest is not None)

    def read(self) -> dict[str, Digest]:
        """What computing it reads."""
        return {**self.inputs, **{name: digest for name, digest in self.past.items() if digest is not None}}

    @property
    def facts(self) -> WorkFacts:
        """What the host says about how it computed."""
        assert self.lease.facts is not None, f"lease {self.lease.lease_id} has not been reported"
        return self.lease.facts

    @property
    def is_all_there(self) -> bool:
        """Whether every output was fetched; of training only what was drawn is, so nothing else can be looked at."""
        return len(self.files) == len(self.lease.outputs)

    def is_whole(self, paths: Mapping[Digest, Path]) -> bool:
        """Whether all of it is at hand."""
        return None not in self.past.values() and all(digest in paths for digest in self.every_digest())

    def is_to_be_audited(self) -> bool:
        """Whether a part of it is replayed before it counts."""
        spec, _ = kind_in(self.unit.spec)
        return self.lease.is_drawn or is_always_audited(spec, self.unit.min_replicas)

    def missing(self, paths: Mapping[Digest, Path]) -> Reason | None:
        """Why the unit can't be judged here: an input of it has left the store."""
        for name, digest in self.inputs.items():
            if digest not in paths:
                return Reason(code=ReasonCode.STATE_MISSING, text=f"its input {name}, {digest[7:19]}, is gone")
        return None


def is_standing(unit: Unit, lease: Lease) -> bool:
    """Whether an audit of this lease still says something about its unit."""
    if unit.state is UnitState.CHECKING:
        return lease.state is LeaseState.AGREED
    return unit.state in HAVE_RESULTS and unit.accepted_lease_id == lease.lease_id


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
            past=_past(connection, of_unit[lease.unit_id]),
        )
        for lease in found.values()
    ]


def _inputs(unit: Unit) -> dict[str, Digest]:
    spec, kind = kind_in(unit.spec)
    return {file.name: file.digest for file in kind.inputs(spec)}


def _past(connection: Connection, unit: Unit) -> dict[str, Digest | None]:
    if unit.parent_id is None:
        return {}
    chain = units.ancestors(connection, unit.unit_id)
    return {past_file(index): ancestor.output_digest for index, ancestor in enumerate(chain)}
