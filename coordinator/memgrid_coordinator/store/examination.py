"""What a diagnosis asks a database: sizes, ages, and what is named but may be missing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, func, select

from memgrid.digest import Digest
from memgrid_coordinator.lifecycle import DocumentState
from memgrid_coordinator.store import units
from memgrid_coordinator.store.dialects import WRITES
from memgrid_coordinator.store.tables import accounts, campaigns, documents, events, hosts, pool_blobs, tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How a grid stands, in numbers."""

    units_by_state: dict[str, int]
    campaigns_by_state: dict[str, int]
    failures_by_reason: dict[str, int]
    """Of documents that became no cube."""
    hosts: int
    hosts_alive: int
    hosts_resting: int
    accounts_banned: int
    tokens_ending: tuple[str, ...]
    """Names of tokens that run out within a week."""
    oldest_opened_at: datetime | None
    last_event_at: datetime | None


def condition(connection: Connection, now: datetime, alive: timedelta) -> Condition:
    by_state = select(campaigns.c.state, func.count()).group_by(campaigns.c.state)
    by_reason = (
        select(documents.c.reason_code, func.count())
        .where(documents.c.state == DocumentState.FAILED)
        .group_by(documents.c.reason_code)
    )
    ending = select(tokens.c.name).where(
        tokens.c.revoked_at.is_(None), tokens.c.expires_at > now, tokens.c.expires_at < now + timedelta(days=7)
    )
    return Condition(
        units_by_state=units.count_by_state(connection),
        campaigns_by_state={row[0]: row[1] for row in connection.execute(by_state)},
        failures_by_reason={row[0] or "unknown": row[1] for row in connection.execute(by_reason)},
        hosts=_count(connection, select(func.count()).select_from(hosts)),
        hosts_alive=_count(connection, select(func.count()).where(hosts.c.seen_at >= now - alive)),
        hosts_resting=_count(connection, select(func.count()).where(hosts.c.suspended_until > now)),
        accounts_banned=_count(connection, select(func.count()).where(accounts.c.banned_at.is_not(None))),
        tokens_ending=tuple(connection.execute(ending).scalars()),
        oldest_opened_at=units.oldest_opening(connection),
        last_event_at=connection.execute(select(events.c.at).order_by(events.c.event_id.desc()).limit(1)).scalar(),
    )


def named_content(connection: Connection, limit: int) -> list[Digest]:
    """Content that can be pulled from the pool, so much of it at most."""
    query = select(pool_blobs.c.digest).distinct().limit(limit)
    return [Digest(digest) for digest in connection.execute(query).scalars()]


def write_lock_s(engine: Engine) -> float:
    """How long it takes to be let in as a writer, in seconds; nothing is written. Raises OperationalError."""
    begun = time.perf_counter()  # a duration, not a time of day
    with engine.connect().execution_options(**WRITES) as connection, connection.begin() as transaction:
        transaction.rollback()
    return time.perf_counter() - begun


def _count(connection: Connection, query: object) -> int:
    count: int = connection.execute(query).scalar_one()  # type: ignore[call-overload]
    return count
