"""How often each cube was pulled, a row a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection, Float, cast, func, insert, select, update

from memgrid.digest import Digest
from memgrid_coordinator.policy.manifests import parse_manifest
from memgrid_coordinator.store.tables import cube_pulls, pool_cubes, pool_manifests


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """A cube that was pulled, and how often."""

    cube: Digest
    kind: str
    produced_flops: int
    pulls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """All pulls, and what making those cubes again would have taken."""

    pulls: int
    flops: float


def count(connection: Connection, *, sent: Mapping[tuple[str, Digest], int], day: date) -> list[Pull]:
    """Count files that were sent, by repository and digest, as pulls of that day; most files are none."""
    counted = []
    for repository in sorted({repository for repository, _ in sent}):
        for largest, cube in _largest_files(connection, repository).items():
            if pulls := sent.get((repository, largest), 0):
                counted.append(Pull(cube=cube[0], kind=cube[1], produced_flops=cube[2], pulls=pulls))
    for pull in counted:
        _add(connection, pull, day)
    return counted


def of(connection: Connection, digests: Sequence[Digest]) -> dict[Digest, int]:
    """How often each of these was pulled; those that never were are left out."""
    query = select(cube_pulls.c.cube_digest, func.sum(cube_pulls.c.pulls)).where(
        cube_pulls.c.cube_digest.in_(digests)
    )
    return {Digest(row[0]): int(row[1]) for row in connection.execute(query.group_by(cube_pulls.c.cube_digest))}


def totals(connection: Connection) -> Pulled:
    """Of all cubes; what one that has left the pool took to make is not known any more."""
    each = (
        select(cube_pulls.c.cube_digest, func.sum(cube_pulls.c.pulls).label("pulls"))
        .group_by(cube_pulls.c.cube_digest)
        .subquery()
    )
    made = (
        select(pool_cubes.c.cube_digest, func.max(pool_cubes.c.produced_flops).label("flops"))
        .group_by(pool_cubes.c.cube_digest)
        .subquery()
    )
    flops = func.coalesce(func.sum(cast(made.c.flops, Float(53)) * each.c.pulls), 0.0)
    query = select(func.coalesce(func.sum(each.c.pulls), 0), flops).select_from(each)
    row = connection.execute(query.outerjoin(made, made.c.cube_digest == each.c.cube_digest)).one()
    return Pulled(pulls=int(row[0]), flops=float(row[1]))


def _largest_files(connection: Connection, repository: str) -> dict[Digest, tuple[Digest, str, int]]:
    """The cubes of a repository by their largest file; of equal ones, the last."""
    query = (
        select(pool_cubes, pool_manifests.c.content, pool_manifests.c.media_type)
        .join(
            pool_manifests,
            (pool_manifests.c.repository == pool_cubes.c.repository)
            & (pool_manifests.c.digest == pool_cubes.c.manifest_digest),
        )
        .where(pool_cubes.c.repository == repository)
        .order_by(pool_cubes.c.pool_cube_id)
    )
    found = {}
    for row in connection.execute(query):
        layers = parse_manifest(row.content, row.media_type).blobs[1:]
        if layers:
            largest = max(enumerate(layers), key=lambda layer: (layer[1].size_bytes, layer[0]))[1]
            found[largest.digest] = (Digest(row.cube_digest), row.kind, row.produced_flops)
    return found


def _add(connection: Connection, pull: Pull, day: date) -> None:
    here = (cube_pulls.c.cube_digest == pull.cube) & (cube_pulls.c.day == day.toordinal())
    more = update(cube_pulls).where(here).values(pulls=cube_pulls.c.pulls + pull.pulls)
    if not connection.execute(more).rowcount:
        row = {"cube_digest": pull.cube, "day": day.toordinal(), "pulls": pull.pulls}
        connection.execute(insert(cube_pulls).values(row))
