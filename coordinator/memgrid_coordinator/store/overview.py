"""The grid at a glance: sums over what is stored, for pages that are read often."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Float, cast, func, select, type_coerce

from memgrid_coordinator.lifecycle import LeaseState
from memgrid_coordinator.store.credits import EVER, is_standing, whole
from memgrid_coordinator.store.tables import accounts, credit_days, credits, hosts, leases, pool_cubes
from memgrid_coordinator.store.types import to_microseconds
from memgrid_coordinator.views import Bucket, Machines

_DEVICES_MAX = 8
_NAME_LENGTH_MAX = 48


def column_of(moment: ColumnElement[Any], start: datetime, width: timedelta) -> ColumnElement[int]:
    """Which column of a plot that begins at `start` a moment falls into."""
    return (type_coerce(moment, BigInteger) - to_microseconds(start)) // int(width / timedelta(microseconds=1))


def as_float(flops: ColumnElement[Any]) -> ColumnElement[float]:
    """FLOPs to be summed: their sum can pass what 64 bits hold."""
    return cast(flops, Float(53))


def machines(connection: Connection, since: datetime) -> Machines:
    """Everybody known, and what the machines heard of since then are."""
    alive = connection.execute(select(hosts.c.facts, hosts.c.flops_per_s).where(hosts.c.seen_at >= since)).all()
    devices: Counter[str] = Counter()
    for row in alive:
        devices.update(_device_names(row.facts))
    return Machines(
        volunteers=count(connection, accounts.c.account_id),
        known=count(connection, hosts.c.host_id),
        alive=len(alive),
        flops_per_s=sum(row.flops_per_s for row in alive),
        devices=tuple(devices.most_common(_DEVICES_MAX)),
    )


def count(connection: Connection, column: ColumnElement[Any]) -> int:
    return int(connection.execute(select(func.count(column))).scalar_one())


def credited(connection: Connection) -> tuple[int, float]:
    """Results that there is credit for, and their FLOPs."""
    sums = [func.coalesce(func.sum(credit_days.c[name]), 0) for name in ("results", "flops_high", "flops_low")]
    results, high, low = connection.execute(select(*sums).where(credit_days.c.day == EVER)).one()
    return int(results), float(whole(high, low))


def made(connection: Connection) -> tuple[int, float]:
    """Units that credit was written for, and their FLOPs, each counted once."""
    each = select(as_float(func.max(credits.c.flops)).label("flops")).group_by(credits.c.unit_id)
    # Less what was taken back: of some units nothing is left.
    each_unit = each.having(func.sum(as_float(credits.c.flops)) > 0).subquery()
    found, flops = connection.execute(select(func.count(), func.coalesce(func.sum(each_unit.c.flops), 0.0))).one()
    return int(found), float(flops)


def history(connection: Connection, start: datetime, width: timedelta, columns: int) -> tuple[Bucket, ...]:
    """What was credited in each column from `start` on."""
    column = column_of(credits.c.granted_at, start, width).label("bucket")
    query = (
        select(column, func.count(), func.sum(as_float(credits.c.flops)))
        .where(credits.c.granted_at >= start, is_standing())
        .group_by(column)
    )
    found = {int(row[0]): (int(row[1]), float(row[2])) for row in connection.execute(query)}
    buckets = ((start + index * width, *found.get(index, (0, 0.0))) for index in range(columns))
    return tuple(Bucket(at=at, results=results, flops=flops) for at, results, flops in buckets)


def growth(
    connection: Connection, start: datetime, width: timedelta, columns: int
) -> tuple[tuple[datetime, int], ...]:
    """How many cubes there were at the end of each column from `start` on."""
    column = column_of(pool_cubes.c.created_at, start, width).label("bucket")
    new = select(column, func.count()).where(pool_cubes.c.created_at >= start).group_by(column)
    by_column = {int(row[0]): int(row[1]) for row in connection.execute(new)}
    before = select(func.count()).where(pool_cubes.c.created_at < start)
    return accumulated(int(connection.execute(before).scalar_one()), by_column, start, width, columns)


def accumulated(
    before: int, by_column: dict[int, int], start: datetime, width: timedelta, columns: int
) -> tuple[tuple[datetime, int], ...]:
    """Running totals at the end of each column; what came after the last one belongs to it."""
    points, total = [], before
    for index in range(columns):
        total += by_column.get(index, 0)
        points.append((start + (index + 1) * width, total))
    late = sum(found for index, found in by_column.items() if index >= columns)
    if points and late:
        points[-1] = (points[-1][0], points[-1][1] + late)
    return tuple(points)


def rejections(connection: Connection) -> tuple[tuple[str, int], ...]:
    """Why reports were rejected, and how often, most first."""
    query = (
        select(leases.c.reason_code, func.count().label("rows"))
        .where(leases.c.state == LeaseState.REJECTED)
        .group_by(leases.c.reason_code)
        .order_by(func.count().desc())
    )
    return tuple((row[0] or "other", int(row[1])) for row in connection.execute(query))


def _device_names(facts: str) -> list[str]:
    """What a host calls its devices, cut to what a page has room for."""
    return [str(device["name"])[:_NAME_LENGTH_MAX] or device["kind"] for device in json.loads(facts)["devices"]]
