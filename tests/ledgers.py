"""Accounts with leases in a database, for tests of who is credited with what."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, insert, select

from memgrid.units import AccountId, HostId, LeaseId, UnitKey
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.records import Lease
from memgrid_coordinator.store import leases
from memgrid_coordinator.store.tables import accounts, credits, hosts, units

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def add_accounts(connection: Connection, names: Sequence[str], *, at: datetime = NOW) -> None:
    """Accounts of those ids, each with a host `h-…`."""
    rows = [{"account_id": name, "public_key": name.encode(), "created_at": at} for name in names]
    connection.execute(insert(accounts), rows)
    machine = {"facts": '{"devices": []}', "flops_per_s": 1.0, "created_at": at, "seen_at": at}
    connection.execute(
        insert(hosts),
        [{"host_id": f"h-{name}", "account_id": name, "label": "attic", **machine} for name in names],
    )


def add_unit(connection: Connection, number: int, *, flops: int = 1000, state: str = UnitState.ACCEPTED) -> int:
    """A unit of that number."""
    row = {"unit_id": number, "key": f"{number:064x}", "kind": "prefill", "spec": b"", "model": "m", "state": state}
    numbers = {"token_count": 1, "flops": flops, "priority": 0, "min_replicas": 2, "max_replicas": 5}
    connection.execute(insert(units).values(**row, **numbers, vacancies=0, output_bytes=0))
    return number


def add_lease(
    connection: Connection,
    name: str,
    account: str,
    unit_id: int,
    *,
    state: LeaseState = LeaseState.AGREED,
    host: str | None = None,
) -> Lease:
    """A lease of that id on a unit, held by a host of the account, `h-…` without."""
    lease = Lease(
        lease_id=LeaseId(name),
        unit_id=unit_id,
        unit_key=UnitKey(f"{unit_id:064x}"),
        host_id=HostId(host or f"h-{account}"),
        account_id=AccountId(account),
        fence=1,
        state=state,
        granted_at=NOW,
        deadline_at=NOW + timedelta(hours=1),
        reported_at=None,
        outputs=(),
        sketch=b"",
        facts=None,
        reason=None,
    )
    leases.grant(connection, [lease])
    return lease


def lines_of(connection: Connection) -> list[tuple[str, str, int]]:
    """The ledger: lease, entry and FLOPs, oldest first."""
    query = select(credits.c.lease_id, credits.c.entry, credits.c.flops).order_by(credits.c.credit_id)
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]
