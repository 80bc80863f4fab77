"""Rows that carry their own address: whether each is still what it was when it was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, tuple_

from memgrid.digest import digest_of
from memgrid.specs import unit_key_of
from memgrid_coordinator.store.tables import pool_manifests, units

ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPage:
    """Rows of a page that are damaged, in words, and where to go on; None at the end."""

    damaged: tuple[str, ...]
    next_key: Any


def manifests(connection: Connection, after: Any) -> RowPage:
    """Manifests are under the digest of their bytes."""
    key = tuple_(pool_manifests.c.repository, pool_manifests.c.digest)
    query = select(pool_manifests.c.repository, pool_manifests.c.digest, pool_manifests.c.content).order_by(
        *key.clauses
    )
    rows = list(connection.execute((query if after is None else query.where(key > tuple_(*after))).limit(ROWS)))
    damaged = tuple(
        f"manifest {row.repository}@{row.digest}: its bytes are {digest_of(_bytes(row.content))}"
        for row in rows
        if digest_of(_bytes(row.content)) != row.digest
    )
    return RowPage(damaged=damaged, next_key=tuple(rows[-1][:2]) if len(rows) == ROWS else None)


def unit_specs(connection: Connection, after: Any) -> RowPage:
    """Units are under the digest of their specs."""
    query = select(units.c.unit_id, units.c.key, units.c.spec).order_by(units.c.unit_id)
    rows = list(connection.execute((query if after is None else query.where(units.c.unit_id > after)).limit(ROWS)))
    damaged = tuple(
        f"unit {row.key}: its spec is that of {unit_key_of(_bytes(row.spec))}"
        for row in rows
        if unit_key_of(_bytes(row.spec)) != row.key
    )
    return RowPage(damaged=damaged, next_key=rows[-1].unit_id if len(rows) == ROWS else None)


def _bytes(value: bytes | str) -> bytes:
    # A damaged row may have come to hold a value of another type.
    return value if isinstance(value, bytes) else value.encode()


Walk = Callable[[Connection, Any], RowPage]
WALKS: tuple[Walk, ...] = (manifests, unit_specs)
