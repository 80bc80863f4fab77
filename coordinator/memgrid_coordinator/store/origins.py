"""Where results come from: account, network and age of those who work on a unit."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from memgrid.units import AccountId
from memgrid_coordinator.lifecycle import LeaseState
from memgrid_coordinator.policy.diversity import Origin
from memgrid_coordinator.store.tables import accounts, leases


def of_account(connection: Connection, account_id: AccountId, network: str) -> Origin:
    """An account that calls from somewhere."""
    query = select(accounts.c.created_at).where(accounts.c.account_id == account_id)
    return Origin(account_id=account_id, network=network, enrolled_at=connection.execute(query).scalar_one())


def of_units(connection: Connection, unit_ids: Sequence[int]) -> dict[int, list[Origin]]:
    """Who holds these units, or has reported them; units that nobody has begun are left out."""
    query = (
        select(leases.c.unit_id, leases.c.account_id, leases.c.network, accounts.c.created_at)
        .join(accounts, accounts.c.account_id == leases.c.account_id)
        .where(leases.c.unit_id.in_(list(unit_ids)), leases.c.state.in_(sorted(_COUNTING)))
    )
    grouped: dict[int, list[Origin]] = {}
    for row in connection.execute(query):
        origin = Origin(account_id=AccountId(row.account_id), network=row.network, enrolled_at=row.created_at)
        grouped.setdefault(row.unit_id, []).append(origin)
    return grouped


_COUNTING = frozenset({LeaseState.LEASED, LeaseState.REPORTED, LeaseState.AGREED})
