"""What the gauges say of the grid, read in few statements that stay bearable with a million units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Float, cast, func, select, text

from memgrid_coordinator.lifecycle import LeaseState, UnitState, UploadState
from memgrid_coordinator.store.tables import document_units, hosts, leases, pool_cubes, units, uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Open units that want another host, and since when the oldest of them does."""

    units: int
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAlive:
    """One host as the fleet is counted; `facts` is the JSON it came with."""

    account_id: str
    facts: str
    flops_per_s: float
    suspended_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeSums:
    """All cubes of a kind, each content once."""

    cubes: int
    payload_bytes: int
    tokens: int
    produced_flops: float
    gap_closed: float | None
    """The mean over those that were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Accepted units that several documents are made of, and the FLOPs that saved."""

    units: int
    flops: float


def units_by_kind_and_state(connection: Connection) -> dict[tuple[str, str], int]:
    query = select(units.c.kind, units.c.state, func.count()).group_by(units.c.kind, units.c.state)
    return {(row[0], row[1]): row[2] for row in connection.execute(query)}


def queue(connection: Connection) -> Queue:
    query = select(func.count(), func.min(units.c.opened_at)).where(_HAS_VACANCY)
    row = connection.execute(query).one()
    return Queue(units=row[0], oldest_at=row[1])


def live_leases(connection: Connection, kinds: Sequence[str]) -> dict[str, int]:
    """Leases held, and reports on units that are not settled: what can still count."""
    held = connection.execute(select(func.count()).select_from(leases).where(_IS_HELD)).scalar_one()
    of_unit = select(func.count()).select_from(leases).join(units, units.c.unit_id == leases.c.unit_id)
    unsettled = units.c.state.in_((UnitState.OPEN, UnitState.CHECKING, UnitState.PROVISIONAL))
    reported = connection.execute(of_unit.where(_IS_REPORTED, unsettled)).scalar_one()
    # Only what is checked or provisional has reports that agree and are not settled: the kinds open their index.
    unended = units.c.kind.in_(kinds) & units.c.state.in_((UnitState.CHECKING, UnitState.PROVISIONAL))
    agreed = connection.execute(of_unit.where(unended, leases.c.state == LeaseState.AGREED)).scalar_one()
    return {LeaseState.LEASED.value: held, LeaseState.REPORTED.value: reported, LeaseState.AGREED.value: agreed}


def busy_hosts(connection: Connection) -> int:
    """Hosts that hold a lease."""
    query = select(func.count(leases.c.host_id.distinct())).where(_IS_HELD)
    return int(connection.execute(query).scalar_one())


def awaited_uploads(connection: Connection) -> dict[str, int]:
    """Ordered files that have not come, and received ones that nobody has checked yet."""
    awaited = (UploadState.ORDERED, UploadState.RECEIVED)
    query = select(uploads.c.state, func.count()).where(uploads.c.state.in_(awaited)).group_by(uploads.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def hosts_alive(connection: Connection, since: datetime) -> list[HostAlive]:
    query = select(hosts.c.account_id, hosts.c.facts, hosts.c.flops_per_s, hosts.c.suspended_until)
    return [
        HostAlive(account_id=row[0], facts=row[1], flops_per_s=row[2], suspended_until=row[3])
        for row in connection.execute(query.where(hosts.c.seen_at >= since))
    ]


def hosts_seen(connection: Connection, now: datetime, within: dict[str, timedelta | None]) -> dict[str, int]:
    """How many hosts were heard of within each time; None is ever."""
    found: dict[str, int] = {}
    for name, length in within.items():
        query = select(func.count()).select_from(hosts)
        if length is not None:
            query = query.where(hosts.c.seen_at >= now - length)
        found[name] = connection.execute(query).scalar_one()
    return found


def cubes_by_kind(connection: Connection) -> dict[str, CubeSums]:
    once = (
        select(
            pool_cubes.c.kind,
            func.max(pool_cubes.c.payload_bytes).label("payload_bytes"),
            func.max(pool_cubes.c.tokens).label("tokens"),
            func.max(cast(pool_cubes.c.produced_flops, Float(53))).label("produced_flops"),
            func.max(pool_cubes.c.gap_closed).label("gap_closed"),
        )
        .group_by(pool_cubes.c.cube_digest, pool_cubes.c.kind)
        .subquery()
    )
    sums = (func.sum(once.c[name]) for name in ("payload_bytes", "tokens", "produced_flops"))
    query = select(once.c.kind, func.count(), *sums, func.avg(once.c.gap_closed)).group_by(once.c.kind)
    return {row[0]: _cube_sums(row) for row in connection.execute(query)}


def shared(connection: Connection) -> Shared:
    """What wanting the same unit twice has saved."""
    wanted = func.count()
    several = (
        select(document_units.c.unit_id, wanted.label("wanted"))
        .group_by(document_units.c.unit_id)
        .having(wanted > 1)
        .subquery()
    )
    query = (
        select(func.count(), func.coalesce(func.sum((several.c.wanted - 1) * cast(units.c.flops, Float(53))), 0.0))
        .select_from(several)
        .join(units, units.c.unit_id == several.c.unit_id)
        .where(units.c.state == UnitState.ACCEPTED)
    )
    row = connection.execute(query).one()
    return Shared(units=row[0], flops=float(row[1]))


# Written as the partial indexes say it, so that both databases find them.
_IS_HELD = text("leases.state = 'leased'")
_IS_REPORTED = text("leases.state = 'reported'")
_HAS_VACANCY = text("units.state = 'open' AND units.vacancies > 0 AND NOT units.on_hold")


def _cube_sums(row: Any) -> CubeSums:
    _, cubes, payload_bytes, tokens, produced_flops, gap_closed = row
    return CubeSums(
        cubes=cubes,
        payload_bytes=int(payload_bytes),
        tokens=int(tokens),
        produced_flops=float(produced_flops),
        gap_closed=None if gap_closed is None else float(gap_closed),
    )
