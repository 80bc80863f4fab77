"""What is done of units whose leases were given back: ordered, here, and gone again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, or_, select, update

from memgrid.digest import Digest
from memgrid.units import AccountId, HostId, LeaseId
from memgrid_coordinator.lifecycle import ENDED_UNITS, HAVE_RESULTS
from memgrid_coordinator.records import Checkpoint
from memgrid_coordinator.store.tables import checkpoints, units


def order(connection: Connection, wanted: Checkpoint) -> None:
    """Want this one; whatever its lease offered before is forgotten."""
    connection.execute(delete(checkpoints).where(checkpoints.c.lease_id == wanted.lease_id))
    connection.execute(insert(checkpoints).values(**asdict(wanted)))


def get(connection: Connection, lease_id: LeaseId) -> Checkpoint | None:
    row = connection.execute(_GET, {"lease": lease_id}).first()
    return None if row is None else _checkpoint(row)


def newest(
    connection: Connection, unit_ids: Sequence[int], account_id: AccountId, now: datetime
) -> dict[int, Checkpoint]:
    """Of each unit the newest that is here, and that a host of this account left."""
    if not unit_ids:
        return {}
    given = {"wanted": list(unit_ids), "account": account_id, "now": now}
    # By fence: the newest of a unit comes last, and stays.
    return {row.unit_id: _checkpoint(row) for row in connection.execute(_NEWEST, given)}


def receive(connection: Connection, ordered: Checkpoint, now: datetime, ends_at: datetime) -> bool:
    """It is here, and those that the account left before on the same unit are not needed any more.

    False when it was not awaited.
    """
    is_it = checkpoints.c.lease_id == ordered.lease_id, checkpoints.c.digest == ordered.digest
    moved = connection.execute(
        update(checkpoints)
        .where(*is_it, checkpoints.c.received_at.is_(None))
        .values(received_at=now, ends_at=ends_at)
    )
    if moved.rowcount:
        of_unit = checkpoints.c.unit_id == ordered.unit_id, checkpoints.c.account_id == ordered.account_id
        connection.execute(delete(checkpoints).where(*of_unit, checkpoints.c.fence < ordered.fence))
    return bool(moved.rowcount)


def forget(connection: Connection, unit_id: int, account_id: AccountId) -> None:
    """Who went on from it could not: nobody shall try again."""
    of_unit = checkpoints.c.unit_id == unit_id, checkpoints.c.account_id == account_id
    connection.execute(delete(checkpoints).where(*of_unit))


def any_ended(connection: Connection, now: datetime) -> bool:
    """Whether `forget_ended` would find something."""
    return connection.execute(select(checkpoints.c.lease_id).where(_has_ended(now)).limit(1)).first() is not None


def forget_ended(connection: Connection, now: datetime) -> None:
    """Let go of what did not come, was not asked for in time, or is of a unit that has its result."""
    connection.execute(delete(checkpoints).where(_has_ended(now)))


def _has_ended(now: datetime) -> ColumnElement[bool]:
    is_done = select(units.c.unit_id).where(units.c.state.in_(sorted(ENDED_UNITS | HAVE_RESULTS)))
    return or_(checkpoints.c.ends_at <= now, checkpoints.c.unit_id.in_(is_done))


def sizes(connection: Connection, account_id: AccountId, without: LeaseId) -> tuple[int, int]:
    """Bytes that are here or ordered, of one account and of all; those of one lease left out."""
    others = checkpoints.c.lease_id != without
    size_bytes = func.coalesce(func.sum(checkpoints.c.size_bytes), 0)
    of_account = select(size_bytes).where(others, checkpoints.c.account_id == account_id)
    of_all = select(size_bytes).where(others)
    return int(connection.execute(of_account).scalar_one()), int(connection.execute(of_all).scalar_one())


def named(connection: Connection) -> frozenset[Digest]:
    """All that is here or may still come."""
    return frozenset(Digest(digest) for digest in connection.execute(select(checkpoints.c.digest)).scalars())


_GET = select(checkpoints).where(checkpoints.c.lease_id == bindparam("lease"))
_NEWEST = (
    select(checkpoints)
    .where(
        checkpoints.c.unit_id.in_(bindparam("wanted", expanding=True)),
        checkpoints.c.account_id == bindparam("account"),
        checkpoints.c.received_at.is_not(None),
        checkpoints.c.ends_at > bindparam("now"),
    )
    .order_by(checkpoints.c.fence)
)


def _checkpoint(row: Any) -> Checkpoint:
    return Checkpoint(
        lease_id=LeaseId(row.lease_id),
        unit_id=row.unit_id,
        host_id=HostId(row.host_id),
        account_id=AccountId(row.account_id),
        fence=row.fence,
        digest=Digest(row.digest),
        size_bytes=row.size_bytes,
        progress=row.progress,
        received_at=row.received_at,
        ends_at=row.ends_at,
    )
