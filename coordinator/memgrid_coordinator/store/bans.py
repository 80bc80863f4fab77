"""Accounts that were shut out, and what of theirs was under way."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, or_, select, update

from memgrid.units import AccountId, HostId, LeaseId
from memgrid_coordinator.lifecycle import LeaseState, UnitState, UploadState
from memgrid_coordinator.store.tables import accounts, hosts, leases, units, uploads


def beginning_with(connection: Connection, prefix: str) -> list[AccountId]:
    """Accounts whose id, or the id of one of whose hosts, starts so."""
    query = (
        select(accounts.c.account_id)
        .outerjoin(hosts, hosts.c.account_id == accounts.c.account_id)
        .where(
            or_(
                accounts.c.account_id.startswith(prefix, autoescape=True),
                hosts.c.host_id.startswith(prefix, autoescape=True),
            )
        )
        .distinct()
    )
    return [AccountId(found) for found in connection.execute(query.limit(8)).scalars()]


def reason_of(connection: Connection, account_id: AccountId) -> str | None:
    """Why an account is banned; None when it is not."""
    query = select(accounts.c.banned_reason).where(
        accounts.c.account_id == account_id, accounts.c.banned_at.is_not(None)
    )
    return connection.execute(query).scalar_one_or_none()


def ban(connection: Connection, account_id: AccountId, reason: str, now: datetime) -> bool:
    """Shut an account out and end its sessions; False when it was out before."""
    moved = connection.execute(
        update(accounts)
        .where(accounts.c.account_id == account_id, accounts.c.banned_at.is_(None))
        .values(banned_at=now, banned_reason=reason)
    )
    connection.execute(update(hosts).where(hosts.c.account_id == account_id).values(session_id=None))
    return moved.rowcount == 1


def unban(connection: Connection, account_id: AccountId) -> bool:
    """False when it was not banned."""
    moved = connection.execute(
        update(accounts)
        .where(accounts.c.account_id == account_id, accounts.c.banned_at.is_not(None))
        .values(banned_at=None, banned_reason="")
    )
    return moved.rowcount == 1


def hosts_of(connection: Connection, account_id: AccountId) -> list[HostId]:
    query = select(hosts.c.host_id).where(hosts.c.account_id == account_id).order_by(hosts.c.host_id)
    return [HostId(found) for found in connection.execute(query).scalars()]


def under_way(connection: Connection, account_id: AccountId) -> list[Row[Any]]:
    """Leases of an account that are held, or reported and not decided: lease_id, unit_id, state, unit_state."""
    query = (
        select(leases.c.lease_id, leases.c.unit_id, leases.c.host_id, leases.c.state)
        .add_columns(units.c.state.label("unit_state"))
        .join(units, units.c.unit_id == leases.c.unit_id)
        .where(
            leases.c.account_id == account_id,
            leases.c.state.in_([LeaseState.LEASED, LeaseState.REPORTED]),
        )
        .order_by(leases.c.unit_id)
    )
    return list(connection.execute(query).all())


def ordered_from(connection: Connection, account_id: AccountId) -> list[LeaseId]:
    """Leases of an account whose results were ordered, while their units wait for them."""
    query = (
        select(leases.c.lease_id)
        .join(units, units.c.unit_id == leases.c.unit_id)
        .join(uploads, uploads.c.lease_id == leases.c.lease_id)
        .where(
            leases.c.account_id == account_id,
            leases.c.state == LeaseState.AGREED,
            units.c.state == UnitState.CHECKING,
            uploads.c.state.in_([UploadState.ORDERED, UploadState.RECEIVED]),
        )
        .distinct()
    )
    return [LeaseId(found) for found in connection.execute(query).scalars()]
