"""Cubes for the pages: a page of what a search finds, and everything known about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from memgrid.digest import Digest
from memgrid_coordinator.progress import Progress
from memgrid_coordinator.records import CampaignId, PoolCube
from memgrid_coordinator.store.credits import is_standing
from memgrid_coordinator.store.pool import conditions_of, to_cube
from memgrid_coordinator.store.tables import campaigns, credits, document_units, documents, pool_cubes

_CHOICES_MAX = 40


def found(
    connection: Connection, *, words: Sequence[str], base: str, kind: str, skip: int, limit: int
) -> tuple[list[PoolCube], int]:
    """Cubes that have every word, newest first, and how many there are."""
    where = conditions_of(words=words, base=base, kind=kind)
    query = (
        select(pool_cubes).where(*where).order_by(pool_cubes.c.created_at.desc(), pool_cubes.c.pool_cube_id.desc())
    )
    page = [to_cube(row) for row in connection.execute(query.offset(skip).limit(limit))]
    total = connection.execute(select(func.count()).select_from(pool_cubes).where(*where)).scalar_one()
    return page, int(total)


def choices(connection: Connection, column: ColumnElement[str]) -> tuple[str, ...]:
    """What stands in a column of the pool, most frequent first: what one may filter by."""
    query = select(column).group_by(column).order_by(func.count().desc(), column).limit(_CHOICES_MAX)
    return tuple(connection.execute(query).scalars())


def bases(connection: Connection) -> tuple[str, ...]:
    return choices(connection, pool_cubes.c.base)


def kinds(connection: Connection) -> tuple[str, ...]:
    return choices(connection, pool_cubes.c.kind)


def totals(connection: Connection) -> tuple[int, int, int]:
    """Cubes, bytes of payload and tokens; the same content under two names counts once."""
    once = (
        select(
            func.max(pool_cubes.c.payload_bytes).label("payload_bytes"), func.max(pool_cubes.c.tokens).label("tokens")
        )
        .group_by(pool_cubes.c.cube_digest)
        .subquery()
    )
    payload, words = (func.coalesce(func.sum(column), 0) for column in (once.c.payload_bytes, once.c.tokens))
    cubes, payload_bytes, tokens = connection.execute(select(func.count(), payload, words).select_from(once)).one()
    return int(cubes), int(payload_bytes), int(tokens)


def of_manifest(connection: Connection, repository: str, manifest_digest: Digest) -> PoolCube | None:
    """A cube by the manifest that its tag or digest stands for."""
    query = (
        select(pool_cubes)
        .where(pool_cubes.c.repository == repository, pool_cubes.c.manifest_digest == manifest_digest)
        .order_by(pool_cubes.c.created_at.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else to_cube(row)


def versions(connection: Connection, repository: str, limit: int) -> tuple[str, ...]:
    """Versions of a cube, newest first."""
    query = (
        select(pool_cubes.c.tag)
        .where(pool_cubes.c.repository == repository)
        .order_by(pool_cubes.c.created_at.desc(), pool_cubes.c.pool_cube_id.desc())
        .limit(limit)
    )
    return tuple(connection.execute(query).scalars())


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The campaign that made a cube, how its training went, and how many volunteers computed for it."""

    campaign_id: CampaignId
    campaign_name: str
    losses: tuple[tuple[int, float], ...]
    volunteers: int


def origin(connection: Connection, cube: Digest) -> Origin | None:
    """Where a cube comes from; None for one that somebody pushed. Of several campaigns, the first."""
    query = (
        select(documents.c.document_id, documents.c.progress, campaigns.c.campaign_id, campaigns.c.name)
        .join(campaigns, campaigns.c.campaign_id == documents.c.campaign_id)
        .where(documents.c.cube_digest == cube)
        .order_by(documents.c.document_id)
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Origin(
        campaign_id=CampaignId(row.campaign_id),
        campaign_name=row.name,
        losses=Progress.from_text(row.progress).losses,
        volunteers=_volunteers(connection, row.document_id),
    )


def _volunteers(connection: Connection, document_id: int) -> int:
    own: Any = select(document_units.c.unit_id).where(document_units.c.document_id == document_id)
    query = select(func.count(credits.c.account_id.distinct())).where(credits.c.unit_id.in_(own), is_standing())
    return int(connection.execute(query).scalar_one())
