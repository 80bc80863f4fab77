"""What stands behind a cube: every report on its units, every audit, and the largest error that was let pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from memgrid.digest import Digest
from memgrid.kinds.audit import Zone, in_words, share_of
from memgrid_coordinator.lifecycle import LeaseState
from memgrid_coordinator.records import DoneAudit, Lease, Unit
from memgrid_coordinator.store import audits, campaigns, leases, units
from memgrid_coordinator.store.retractions import of_cube


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """The units of a cube in order, with all their leases and audits."""

    units: tuple[Unit, ...]
    leases: tuple[Lease, ...]
    audits: tuple[DoneAudit, ...]

    def summary(self) -> str:
        """In a sentence or two."""
        states = Counter(lease.state for lease in self.leases if lease.reported_at is not None)
        zones = Counter(audit.zone for audit in self.audits)
        told = (
            f"{len(self.units)} units, {states.total()} reports ({states[LeaseState.AGREED]} agreed, "
            f"{states[LeaseState.REJECTED]} rejected), {zones.total()} audits ({zones[Zone.PASS]} passed, "
            f"{zones[Zone.SUSPICIOUS]} suspicious, {zones[Zone.FAULT]} faults)"
        )
        worst = max(self._accepted_statistics(), default=None)
        return told if worst is None else f"{told}; the largest error of what was accepted: {worst[1]}"

    def _accepted_statistics(self) -> Iterator[tuple[float, str]]:
        """Each statistic of the audits that were passed, as a share of what is allowed, and in words."""
        accepted = {unit.accepted_lease_id: unit for unit in self.units}
        for audit in self.audits:
            if audit.lease_id not in accepted:
                continue
            for replay in audit.replays:
                for name, value in replay.statistics.items():
                    told = in_words(name, value, replay.limits[name])
                    yield share_of(value, replay.limits[name]), f"{told}, unit {accepted[audit.lease_id].key[:8]}"


def vouched(connection: Connection, cube_digest: Digest) -> Vouched | None:
    """What is known of a published cube; None of one that no campaign here has made, or that was retracted."""
    unit_ids = campaigns.units_of_cube(connection, cube_digest)
    if not unit_ids:
        return None
    found = units.by_id(connection, unit_ids)
    of_unit = leases.of_units(connection, unit_ids)
    held = tuple(lease for unit_id in unit_ids for lease in of_unit[unit_id])
    done = audits.of_leases(connection, [lease.lease_id for lease in held])
    return Vouched(
        units=tuple(found[unit_id] for unit_id in unit_ids),
        leases=held,
        audits=tuple(audit for group in done.values() for audit in group),
    )


def retraction_of(connection: Connection, cube_digest: Digest) -> str:
    """When and why a cube was taken back; empty when it was not."""
    taken_back = of_cube(connection, cube_digest)
    if not taken_back:
        return ""
    return f"Retracted on {taken_back[-1].at:%Y-%m-%d %H:%M} UTC: {taken_back[-1].reason.text}"
