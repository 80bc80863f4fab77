"""The ledger of credit: lines are added, never changed; totals are a projection."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, insert, select

from memgrid.units import AccountId
from memgrid_coordinator.records import Lease
from memgrid_coordinator.store.tables import credits


def grant(connection: Connection, earned: Sequence[Lease], flops: int, now: datetime) -> None:
    """One line for each lease; the table refuses a second line for the same lease."""
    if earned:
        connection.execute(
            insert(credits),
            [
                {
                    "lease_id": lease.lease_id,
                    "account_id": lease.account_id,
                    "host_id": lease.host_id,
                    "unit_id": lease.unit_id,
                    "flops": flops,
                    "granted_at": now,
                }
                for lease in earned
            ],
        )


def total(connection: Connection, account_id: AccountId) -> int:
    """FLOPs credited to an account so far."""
    query = select(func.coalesce(func.sum(credits.c.flops), 0)).where(credits.c.account_id == account_id)
    return int(connection.execute(query).scalar_one())
