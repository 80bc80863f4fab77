"""Orders for outputs, and what became of them: an order is all files wanted of one lease."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, exists, insert, select, update

from memgrid.digest import Digest
from memgrid.units import HostId, LeaseId, Output, UploadOrder
from memgrid_coordinator.lifecycle import UPLOAD_MOVES, UploadState
from memgrid_coordinator.policy.repositories import outputs_of, upload_path
from memgrid_coordinator.records import AuditState, Lease
from memgrid_coordinator.store.tables import audits, uploads


def order(connection: Connection, wanted: Sequence[tuple[Lease, Sequence[Output], datetime]]) -> None:
    """Want these outputs of each lease until its time."""
    rows = [_to_row(lease, output, due_at) for lease, outputs, due_at in wanted for output in outputs]
    if rows:
        connection.execute(_ORDER, rows)


def ordered_from(connection: Connection, host_id: HostId) -> list[UploadOrder]:
    """What a host is asked to upload now, the most urgent first; the rest is told when those are through."""
    return [_order(row) for row in connection.execute(_ORDERED_FROM, {"host": host_id})]


def of_leases(connection: Connection, lease_ids: Iterable[LeaseId]) -> dict[LeaseId, list[Output]]:
    """What was ordered of each of these."""
    found: dict[LeaseId, list[Output]] = {}
    for row in connection.execute(_OF_LEASES, {"wanted": list(lease_ids)}):
        output = Output(name=row.name, digest=Digest(row.digest), size_bytes=row.size_bytes)
        found.setdefault(LeaseId(row.lease_id), []).append(output)
    return found


def tried(connection: Connection, unit_ids: Sequence[int]) -> frozenset[LeaseId]:
    """Leases of these units whose upload was asked for in vain."""
    query = select(uploads.c.lease_id).where(
        uploads.c.unit_id.in_(list(unit_ids)), uploads.c.state == UploadState.REFUSED
    )
    return frozenset(LeaseId(lease_id) for lease_id in connection.execute(query).scalars())


def receive(connection: Connection, arrived: Sequence[tuple[LeaseId, Digest]]) -> frozenset[LeaseId]:
    """These files are in the content store; returns the leases that nothing more is awaited of, because of them."""
    if not arrived:
        return frozenset()
    rows = [{"of_lease": lease_id, "of_digest": digest} for lease_id, digest in arrived]
    wanted = sorted({lease_id for lease_id, _ in arrived})
    awaited = _awaited(connection, wanted)
    connection.execute(_RECEIVE, rows)
    return awaited - _awaited(connection, wanted)


def end(connection: Connection, lease_ids: Sequence[LeaseId], verb: str) -> frozenset[LeaseId]:
    """Verify or refuse whole orders; returns those that moved: the others were in no state it starts from.

    An order can be verified when all its files are here, and refused while any is under way or here.
    """
    wanted = list(lease_ids)
    movable = frozenset(LeaseId(found) for found in connection.execute(_MOVABLE[verb], {"wanted": wanted}).scalars())
    if verb == "verify":
        movable -= _awaited(connection, wanted)
    if movable:
        connection.execute(_MOVES[verb], {"wanted": sorted(movable)})
    return movable


def received(connection: Connection, limit: int) -> list[LeaseId]:
    """Orders that are here whole and have not been checked, nor wait for their audit; the oldest first."""
    awaited = uploads.alias()
    missing = exists().where(awaited.c.lease_id == uploads.c.lease_id, awaited.c.state == UploadState.ORDERED)
    waits = exists().where(audits.c.lease_id == uploads.c.lease_id, audits.c.state == AuditState.WANTED)
    query = (
        select(uploads.c.lease_id)
        .where(uploads.c.state == UploadState.RECEIVED, ~missing, ~waits)
        .group_by(uploads.c.lease_id)
        .order_by(uploads.c.lease_id)
        .limit(limit)
    )
    return [LeaseId(lease_id) for lease_id in connection.execute(query).scalars()]


def overdue(connection: Connection, now: datetime, limit: int) -> list[LeaseId]:
    """Orders of which a file did not come in time."""
    query = (
        select(uploads.c.lease_id)
        .where(uploads.c.state == UploadState.ORDERED, uploads.c.due_at <= now)
        .group_by(uploads.c.lease_id)
        .limit(limit)
    )
    return [LeaseId(lease_id) for lease_id in connection.execute(query).scalars()]


def _awaited(connection: Connection, lease_ids: Sequence[LeaseId]) -> frozenset[LeaseId]:
    """Of these, the leases with a file that is still to come."""
    found = connection.execute(_AWAITED, {"wanted": list(lease_ids)}).scalars()
    return frozenset(LeaseId(lease_id) for lease_id in found)


_ORDER = insert(uploads)
_WANTED = uploads.c.lease_id.in_(bindparam("wanted", expanding=True))
_OF_LEASES = select(uploads).where(_WANTED)
_AWAITED = select(uploads.c.lease_id).where(_WANTED, uploads.c.state == UploadState.ORDERED).distinct()
_MOVABLE = {
    verb: select(uploads.c.lease_id).where(_WANTED, uploads.c.state.in_(sorted(sources))).distinct()
    for verb, (sources, _) in UPLOAD_MOVES.items()
}
_MOVES = {
    verb: update(uploads).where(_WANTED, uploads.c.state.in_(sorted(sources))).values(state=target)
    for verb, (sources, target) in UPLOAD_MOVES.items()
}
_RECEIVE = (
    update(uploads)
    .where(
        uploads.c.lease_id == bindparam("of_lease"),
        uploads.c.digest == bindparam("of_digest"),
        uploads.c.state == UploadState.ORDERED,
    )
    .values(state=UploadState.RECEIVED)
)
ORDERS_MAX = 32
_ORDERED_FROM = (
    select(uploads)
    .where(uploads.c.host_id == bindparam("host"), uploads.c.state == UploadState.ORDERED)
    .order_by(uploads.c.due_at)
    .limit(ORDERS_MAX)
)


def _to_row(lease: Lease, output: Output, due_at: datetime) -> dict[str, Any]:
    return {
        "lease_id": lease.lease_id,
        "name": output.name,
        "host_id": lease.host_id,
        "unit_id": lease.unit_id,
        "digest": output.digest,
        "size_bytes": output.size_bytes,
        "state": UploadState.ORDERED,
        "due_at": due_at,
    }


def _order(row: Any) -> UploadOrder:
    lease_id = LeaseId(row.lease_id)
    return UploadOrder(
        lease_id=lease_id,
        name=row.name,
        digest=Digest(row.digest),
        size_bytes=row.size_bytes,
        path=upload_path(outputs_of(lease_id)),
    )
