"""Leases and the reports that answer them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from memgrid.digest import Digest
from memgrid.units import AccountId, ComputeDtype, HostId, LeaseId, Output, Reason, ReportClaim, UnitKey, WorkFacts
from memgrid_coordinator.lifecycle import LEASE_MOVES, LeaseState, UnitState
from memgrid_coordinator.records import Lease
from memgrid_coordinator.store.events import reason_from
from memgrid_coordinator.store.tables import leases, statements, units


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A lease whose end its host has not heard of."""

    lease_id: LeaseId
    state: LeaseState
    reason: Reason | None
    unit_state: UnitState
    flops: int


def grant(connection: Connection, granted: Sequence[Lease]) -> None:
    """Write new leases in one statement."""
    connection.execute(
        insert(leases),
        [
            {
                "lease_id": lease.lease_id,
                "unit_id": lease.unit_id,
                "host_id": lease.host_id,
                "account_id": lease.account_id,
                "fence": lease.fence,
                "state": lease.state,
                "granted_at": lease.granted_at,
                "deadline_at": lease.deadline_at,
                "outputs": "[]",
                "sketch": b"",
                "facts": "",
                "reason_text": "",
            }
            for lease in granted
        ],
    )


def by_id(connection: Connection, lease_ids: Iterable[LeaseId]) -> dict[LeaseId, Lease]:
    return {lease.lease_id: lease for lease in _select(connection, leases.c.lease_id.in_(list(lease_ids)))}


def of_units(connection: Connection, unit_ids: Iterable[int]) -> dict[int, list[Lease]]:
    """All leases those units ever had, by unit, oldest fence first."""
    grouped: dict[int, list[Lease]] = {unit_id: [] for unit_id in unit_ids}
    for lease in _select(connection, leases.c.unit_id.in_(list(grouped))):
        grouped[lease.unit_id].append(lease)
    return {unit_id: sorted(found, key=lambda lease: lease.fence) for unit_id, found in grouped.items()}


def held_by(connection: Connection, host_id: HostId) -> list[Lease]:
    """What the host should be working on."""
    return _select(connection, (leases.c.host_id == host_id) & (leases.c.state == LeaseState.LEASED))


def due(connection: Connection, now: datetime, limit: int) -> list[Lease]:
    """Leases whose deadline has passed."""
    query = (leases.c.state == LeaseState.LEASED) & (leases.c.deadline_at <= now)
    return _select(connection, query, limit=limit)


def count_by_state(connection: Connection) -> dict[str, int]:
    query = select(leases.c.state, func.count()).group_by(leases.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def beginning_with(connection: Connection, prefix: str) -> list[Lease]:
    """Leases whose id starts so, two at the most."""
    return _select(connection, leases.c.lease_id.startswith(prefix, autoescape=True), limit=2)


def settled(connection: Connection, host_id: HostId, awaiting: Sequence[LeaseId]) -> list[Settled]:
    """Of the reports a host awaits, those that need no more waiting."""
    query = (
        select(
            leases.c.lease_id,
            leases.c.state,
            leases.c.reason_code,
            leases.c.reason_text,
            units.c.state.label("unit_state"),
            units.c.flops,
        )
        .join(units, units.c.unit_id == leases.c.unit_id)
        .where(leases.c.lease_id.in_(list(awaiting)), leases.c.host_id == host_id)
    )
    return [
        Settled(
            lease_id=LeaseId(row.lease_id),
            state=LeaseState(row.state),
            reason=reason_from(row.reason_code, row.reason_text),
            unit_state=UnitState(row.unit_state),
            flops=row.flops,
        )
        for row in connection.execute(query)
    ]


def report(
    connection: Connection,
    claims: Sequence[tuple[ReportClaim, bytes]],
    *,
    statement_id: int,
    now: datetime,
) -> None:
    """Write reports with their sketches; the leases were seen as leased in this same step."""
    rows = [
        {
            "reported": claim.lease_id,
            "new_outputs": json.dumps([asdict(output) for output in claim.outputs]),
            "new_sketch": sketch,
            "new_facts": json.dumps(asdict(claim.facts)),
            "new_statement": statement_id,
            "new_time": now,
        }
        for claim, sketch in claims
    ]
    connection.execute(_REPORT, rows)


def add_statement(connection: Connection, host_id: HostId, body: bytes, signature: bytes, now: datetime) -> int:
    """Keep what a host signed, as it signed it."""
    row = connection.execute(
        insert(statements).values(host_id=host_id, body=body, signature=signature, received_at=now)
    )
    assert row.inserted_primary_key is not None
    statement_id: int = row.inserted_primary_key[0]
    return statement_id


def move(connection: Connection, lease_ids: Sequence[LeaseId], verb: str, reason: Reason | None) -> int:
    """The guarded move of some leases, for one reason; returns how many moved."""
    sources, target = LEASE_MOVES[verb]
    moved = connection.execute(
        update(leases)
        .where(leases.c.lease_id.in_(list(lease_ids)), leases.c.state.in_(list(sources)))
        .values(
            state=target,
            reason_code=None if reason is None else reason.code.value,
            reason_text="" if reason is None else reason.text,
        )
    )
    return moved.rowcount


_REPORT = (
    update(leases)
    .where(leases.c.lease_id == bindparam("reported"), leases.c.state == LeaseState.LEASED)
    .values(
        state=LeaseState.REPORTED,
        outputs=bindparam("new_outputs"),
        sketch=bindparam("new_sketch"),
        facts=bindparam("new_facts"),
        statement_id=bindparam("new_statement"),
        reported_at=bindparam("new_time"),
    )
)


def _select(connection: Connection, where: Any, limit: int | None = None) -> list[Lease]:
    query = select(leases, units.c.key).join(units, units.c.unit_id == leases.c.unit_id).where(where).limit(limit)
    return [_lease(row) for row in connection.execute(query)]


def _lease(row: Any) -> Lease:
    return Lease(
        lease_id=LeaseId(row.lease_id),
        unit_id=row.unit_id,
        unit_key=UnitKey(row.key),
        host_id=HostId(row.host_id),
        account_id=AccountId(row.account_id),
        fence=row.fence,
        state=LeaseState(row.state),
        granted_at=row.granted_at,
        deadline_at=row.deadline_at,
        reported_at=row.reported_at,
        outputs=tuple(_output(entry) for entry in json.loads(row.outputs)),
        sketch=row.sketch,
        facts=_facts(json.loads(row.facts)) if row.facts else None,
        reason=reason_from(row.reason_code, row.reason_text),
    )


def _output(entry: dict[str, Any]) -> Output:
    return Output(name=entry["name"], digest=Digest(entry["digest"]), size_bytes=entry["size_bytes"])


def _facts(entry: dict[str, Any]) -> WorkFacts:
    return WorkFacts(**{**entry, "compute_dtype": ComputeDtype(entry["compute_dtype"])})
