"""Orders for outputs, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from memgrid.digest import Digest
from memgrid.units import HostId, LeaseId, UploadOrder
from memgrid_coordinator.lifecycle import UPLOAD_MOVES, UploadState
from memgrid_coordinator.records import Lease
from memgrid_coordinator.store.tables import uploads


def order(connection: Connection, wanted: Sequence[tuple[Lease, datetime]]) -> None:
    """Want the outputs of these leases, each until its time."""
    if wanted:
        connection.execute(_ORDER, [_to_row(lease, due_at) for lease, due_at in wanted])


def ordered_from(connection: Connection, host_id: HostId) -> list[UploadOrder]:
    """What a host is asked to upload now, the most urgent first; the rest is told when those are through."""
    return [_order(row) for row in connection.execute(_ORDERED_FROM, {"host": host_id})]


def tried(connection: Connection, unit_ids: Sequence[int]) -> frozenset[LeaseId]:
    """Leases of these units whose upload was asked for in vain."""
    query = select(uploads.c.lease_id).where(
        uploads.c.unit_id.in_(list(unit_ids)), uploads.c.state == UploadState.REFUSED
    )
    return frozenset(LeaseId(lease_id) for lease_id in connection.execute(query).scalars())


def move(connection: Connection, lease_ids: Sequence[LeaseId], verb: str) -> frozenset[LeaseId]:
    """The guarded move of some orders; returns those that moved: the others were in no state it starts from."""
    wanted = list(lease_ids)
    movable = frozenset(LeaseId(found) for found in connection.execute(_MOVABLE[verb], {"wanted": wanted}).scalars())
    if movable:
        moved = connection.execute(_MOVES[verb], {"wanted": sorted(movable)})
        assert moved.rowcount == len(movable), f"{verb} moved {moved.rowcount} of {len(movable)} orders just read"
    return movable


def in_state(connection: Connection, state: UploadState, limit: int, due_by: datetime | None = None) -> list[LeaseId]:
    """Orders in a state, most overdue first."""
    query = select(uploads.c.lease_id).where(uploads.c.state == state).order_by(uploads.c.due_at).limit(limit)
    if due_by is not None:
        query = query.where(uploads.c.due_at <= due_by)
    return [LeaseId(lease_id) for lease_id in connection.execute(query).scalars()]


def upload_path(lease_id: LeaseId) -> str:
    """Where the data plane takes the output of a lease."""
    return f"/v2/grid/outputs/{lease_id}/blobs/uploads/"


_ORDER = insert(uploads)
_WANTED = uploads.c.lease_id.in_(bindparam("wanted", expanding=True))
_MOVABLE = {
    verb: select(uploads.c.lease_id).where(_WANTED, uploads.c.state.in_(sorted(sources)))
    for verb, (sources, _) in UPLOAD_MOVES.items()
}
_MOVES = {
    verb: update(uploads).where(_WANTED, uploads.c.state.in_(sorted(sources))).values(state=target)
    for verb, (sources, target) in UPLOAD_MOVES.items()
}
ORDERS_MAX = 32
_ORDERED_FROM = (
    select(uploads)
    .where(uploads.c.host_id == bindparam("host"), uploads.c.state == UploadState.ORDERED)
    .order_by(uploads.c.due_at)
    .limit(ORDERS_MAX)
)


def _to_row(lease: Lease, due_at: datetime) -> dict[str, Any]:
    output = lease.outputs[0]
    return {
        "lease_id": lease.lease_id,
        "host_id": lease.host_id,
        "unit_id": lease.unit_id,
        "name": output.name,
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
        path=upload_path(lease_id),
    )
