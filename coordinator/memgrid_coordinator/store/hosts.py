"""Accounts, invites, hosts and their sessions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from memgrid.units import AccountId, HostFacts, HostId, SessionId
from memgrid_coordinator.records import Host
from memgrid_coordinator.store.tables import accounts, hosts, invites


def account_of(connection: Connection, public_key: bytes) -> AccountId | None:
    found = connection.execute(select(accounts.c.account_id).where(accounts.c.public_key == public_key)).scalar()
    return None if found is None else AccountId(found)


def add_account(connection: Connection, account_id: AccountId, public_key: bytes, now: datetime) -> None:
    connection.execute(insert(accounts).values(account_id=account_id, public_key=public_key, created_at=now))


def add_invite(connection: Connection, code_digest: str, uses: int, now: datetime) -> None:
    connection.execute(insert(invites).values(code_digest=code_digest, uses_left=uses, created_at=now))


def use_invite(connection: Connection, code_digest: str) -> bool:
    """Take one use of an invite; False when it is unknown or used up."""
    taken = connection.execute(
        update(invites)
        .where(invites.c.code_digest == code_digest, invites.c.uses_left > 0)
        .values(uses_left=invites.c.uses_left - 1)
    )
    return taken.rowcount == 1


def host_of_label(connection: Connection, account_id: AccountId, label: str) -> HostId | None:
    query = select(hosts.c.host_id).where(hosts.c.account_id == account_id, hosts.c.label == label)
    found = connection.execute(query).scalar()
    return None if found is None else HostId(found)


def add_host(
    connection: Connection,
    host_id: HostId,
    *,
    account_id: AccountId,
    label: str,
    facts: HostFacts,
    flops_per_s: float,
    now: datetime,
) -> None:
    connection.execute(
        insert(hosts).values(
            host_id=host_id,
            account_id=account_id,
            label=label,
            facts=json.dumps(asdict(facts)),
            sequence=0,
            flops_per_s=flops_per_s,
            recent_faults=0,
            created_at=now,
            seen_at=now,
        )
    )


def get_host(connection: Connection, host_id: HostId) -> Host | None:
    row = connection.execute(_GET_HOST, {"wanted": host_id}).one_or_none()
    return None if row is None else _host(row)


def begin_session(
    connection: Connection, host_id: HostId, session_id: SessionId, facts: HostFacts, network: str, now: datetime
) -> None:
    """Make `session_id` the host's only session; the one before it is refused from now on."""
    connection.execute(
        update(hosts)
        .where(hosts.c.host_id == host_id)
        .values(session_id=session_id, sequence=0, facts=json.dumps(asdict(facts)), network=network, seen_at=now)
    )


def advance(connection: Connection, host_id: HostId, session_id: SessionId, sequence: int, now: datetime) -> bool:
    """Note a Sync; False when the session was replaced or the sequence is older than the last one seen."""
    given = {"wanted": host_id, "session": session_id, "new_sequence": sequence, "new_time": now}
    return connection.execute(_ADVANCE, given).rowcount == 1


def end_session(connection: Connection, host_id: HostId, session_id: SessionId) -> None:
    connection.execute(
        update(hosts).where(hosts.c.host_id == host_id, hosts.c.session_id == session_id).values(session_id=None)
    )


def set_speed(connection: Connection, host_id: HostId, flops_per_s: float) -> None:
    connection.execute(_SET_SPEED, {"wanted": host_id, "new_speed": flops_per_s})


def set_faults(connection: Connection, host_id: HostId, faults: int, suspended_until: datetime | None) -> None:
    connection.execute(
        update(hosts).where(hosts.c.host_id == host_id).values(recent_faults=faults, suspended_until=suspended_until)
    )


def forgive(connection: Connection, host_ids: Sequence[HostId]) -> None:
    """An agreed report ends a row of faults."""
    connection.execute(_FORGIVE, {"wanted": list(host_ids)})


def beginning_with(connection: Connection, prefix: str) -> list[HostId]:
    """Ids that start so, two at the most."""
    query = select(hosts.c.host_id).where(hosts.c.host_id.startswith(prefix, autoescape=True)).limit(2)
    return [HostId(found) for found in connection.execute(query).scalars()]


def speeds_seen_since(connection: Connection, since: datetime) -> list[float]:
    """FLOP/s of the hosts alive, slowest first."""
    query = select(hosts.c.flops_per_s).where(hosts.c.seen_at >= since).order_by(hosts.c.flops_per_s)
    return list(connection.execute(query).scalars())


def is_alone(connection: Connection, host: Host, since: datetime) -> bool:
    """Whether nobody has been heard of who could confirm what this host says: another account, of another network."""
    given = {"account": host.account_id, "network": host.network, "heard_since": since}
    return connection.execute(_ANOTHER, given).first() is None


# The statements of the hot path are built once: building one costs more than running it.
_GET_HOST = (
    select(hosts, accounts.c.public_key)
    .join(accounts, accounts.c.account_id == hosts.c.account_id)
    .where(hosts.c.host_id == bindparam("wanted"))
)
_ADVANCE = (
    update(hosts)
    .where(
        hosts.c.host_id == bindparam("wanted"),
        hosts.c.session_id == bindparam("session"),
        hosts.c.sequence <= bindparam("new_sequence"),
    )
    .values(sequence=bindparam("new_sequence"), seen_at=bindparam("new_time"))
)
_SET_SPEED = update(hosts).where(hosts.c.host_id == bindparam("wanted")).values(flops_per_s=bindparam("new_speed"))
_FORGIVE = (
    update(hosts)
    .where(hosts.c.host_id.in_(bindparam("wanted", expanding=True)), hosts.c.recent_faults > 0)
    .values(recent_faults=0, suspended_until=None)
)


_ANOTHER = (
    select(hosts.c.host_id)
    .where(
        hosts.c.seen_at >= bindparam("heard_since"),
        hosts.c.account_id != bindparam("account"),
        or_(hosts.c.network == "", hosts.c.network != bindparam("network")),
    )
    .limit(1)
)


def _host(row: Any) -> Host:
    return Host(
        host_id=HostId(row.host_id),
        account_id=AccountId(row.account_id),
        public_key=row.public_key,
        label=row.label,
        session_id=None if row.session_id is None else SessionId(row.session_id),
        sequence=row.sequence,
        flops_per_s=row.flops_per_s,
        recent_faults=row.recent_faults,
        suspended_until=row.suspended_until,
        network=row.network,
    )
