"""Manifests, tags, cubes, and which blob may be read through which repository."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from memgrid.digest import Digest
from memgrid_coordinator.records import CubeFacts, PoolCube, PoolManifest
from memgrid_coordinator.store.tables import pool_blobs, pool_cubes, pool_manifests, pool_tags

_IN_MAX = 500
"""Values in one IN list: well below what either database takes in one statement."""


def link_blobs(connection: Connection, repository: str, digests: Iterable[Digest]) -> None:
    """Let these blobs be read through a repository; those that could be already stay so."""
    wanted = list(dict.fromkeys(digests))
    for start in range(0, len(wanted), _IN_MAX):
        part = wanted[start : start + _IN_MAX]
        here = select(pool_blobs.c.digest).where(pool_blobs.c.repository == repository, pool_blobs.c.digest.in_(part))
        known = set(connection.execute(here).scalars())
        if new := [digest for digest in part if digest not in known]:
            connection.execute(insert(pool_blobs), [{"repository": repository, "digest": digest} for digest in new])


def unlink_blobs(connection: Connection, repository: str, digests: Iterable[Digest]) -> None:
    """Let these blobs no longer be read through a repository."""
    unwanted = list(digests)
    for start in range(0, len(unwanted), _IN_MAX):
        part = unwanted[start : start + _IN_MAX]
        connection.execute(
            delete(pool_blobs).where(pool_blobs.c.repository == repository, pool_blobs.c.digest.in_(part))
        )


def repositories_of_blob(connection: Connection, digest: Digest) -> set[str]:
    """Every repository a blob may be read through; none for what no manifest or upload ever named."""
    return set(connection.execute(select(pool_blobs.c.repository).where(pool_blobs.c.digest == digest)).scalars())


def add_manifest(connection: Connection, manifest: PoolManifest, now: datetime) -> bool:
    """Store a manifest; False when the repository had it."""
    if find_manifest(connection, manifest.repository, manifest.digest) is not None:
        return False
    connection.execute(
        insert(pool_manifests).values(
            repository=manifest.repository,
            digest=manifest.digest,
            media_type=manifest.media_type,
            artifact_type=manifest.artifact_type,
            subject=manifest.subject,
            content=manifest.content,
            created_at=now,
        )
    )
    return True


def find_manifest(connection: Connection, repository: str, digest: Digest) -> PoolManifest | None:
    query = select(pool_manifests).where(pool_manifests.c.repository == repository, pool_manifests.c.digest == digest)
    row = connection.execute(query).one_or_none()
    return None if row is None else _to_manifest(row)


def manifests(connection: Connection, repository: str) -> list[PoolManifest]:
    """Every manifest of a repository."""
    query = select(pool_manifests).where(pool_manifests.c.repository == repository)
    return [_to_manifest(row) for row in connection.execute(query)]


def manifests_of_subject(connection: Connection, repository: str, subject: Digest) -> list[PoolManifest]:
    """Every manifest of a repository that is about another one, oldest first."""
    query = (
        select(pool_manifests)
        .where(pool_manifests.c.repository == repository, pool_manifests.c.subject == subject)
        .order_by(pool_manifests.c.created_at, pool_manifests.c.digest)
    )
    return [_to_manifest(row) for row in connection.execute(query)]


def remove_manifest(connection: Connection, repository: str, digest: Digest) -> None:
    """Take a manifest out of a repository, with its tags and what search knew of it."""
    for table, column in (
        (pool_manifests, pool_manifests.c.digest),
        (pool_tags, pool_tags.c.digest),
        (pool_cubes, pool_cubes.c.manifest_digest),
    ):
        connection.execute(delete(table).where(table.c.repository == repository, column == digest))


def set_tag(connection: Connection, repository: str, tag: str, digest: Digest, now: datetime) -> None:
    """Let a tag point at a manifest, wherever it pointed before."""
    here = and_(pool_tags.c.repository == repository, pool_tags.c.tag == tag)
    moved = connection.execute(update(pool_tags).where(here).values(digest=digest, updated_at=now))
    if not moved.rowcount:
        row = {"repository": repository, "tag": tag, "digest": digest, "updated_at": now}
        connection.execute(insert(pool_tags).values(row))


def remove_tag(connection: Connection, repository: str, tag: str) -> bool:
    """Take a tag away; its manifest stays. False when it was not there."""
    here = and_(pool_tags.c.repository == repository, pool_tags.c.tag == tag)
    return connection.execute(delete(pool_tags).where(here)).rowcount == 1


def count_cubes(connection: Connection, repositories: Iterable[str], version: str) -> int:
    """How many of these repositories have a cube of that version."""
    wanted = list(dict.fromkeys(repositories))
    found = 0
    for start in range(0, len(wanted), _IN_MAX):
        here = pool_cubes.c.repository.in_(wanted[start : start + _IN_MAX])
        query = select(func.count(pool_cubes.c.repository.distinct())).where(here, pool_cubes.c.tag == version)
        found += connection.execute(query).scalar_one()
    return found


def digest_of_tag(connection: Connection, repository: str, tag: str) -> Digest | None:
    query = select(pool_tags.c.digest).where(pool_tags.c.repository == repository, pool_tags.c.tag == tag)
    found = connection.execute(query).scalar()
    return None if found is None else Digest(found)


def tags(connection: Connection, repository: str, *, after: str, limit: int) -> list[str]:
    """Tags in order, from the first that comes after `after`."""
    query = (
        select(pool_tags.c.tag)
        .where(pool_tags.c.repository == repository, pool_tags.c.tag > after)
        .order_by(pool_tags.c.tag)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def repositories(connection: Connection, *, after: str, limit: int) -> list[str]:
    """Repositories with a manifest, in order, from the first that comes after `after`."""
    query = (
        select(pool_manifests.c.repository)
        .distinct()
        .where(pool_manifests.c.repository > after)
        .order_by(pool_manifests.c.repository)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def has_repository(connection: Connection, repository: str) -> bool:
    """Whether anything was ever put under that name."""
    query = select(pool_blobs.c.digest).where(pool_blobs.c.repository == repository).limit(1)
    return connection.execute(query).scalar() is not None


def set_cube(
    connection: Connection, repository: str, tag: str, manifest_digest: Digest, facts: CubeFacts, now: datetime
) -> None:
    """Let search know a version of a cube; other content under that version replaces what it knew."""
    here = and_(pool_cubes.c.repository == repository, pool_cubes.c.tag == tag)
    known = connection.execute(select(pool_cubes.c.manifest_digest).where(here)).scalar()
    if known == manifest_digest:
        return
    connection.execute(delete(pool_cubes).where(here))
    looked_in = [repository, facts.title, facts.base, *facts.source_names, *facts.terms]
    connection.execute(
        insert(pool_cubes).values(
            repository=repository,
            tag=tag,
            cube_digest=facts.digest,
            manifest_digest=manifest_digest,
            kind=facts.kind,
            base=facts.base,
            title=facts.title,
            search_text="\n".join(looked_in).lower(),
            tokens=facts.tokens,
            payload_bytes=facts.payload_bytes,
            licence=facts.licence,
            produced_flops=facts.produced_flops,
            gap_closed=facts.gap_closed,
            created_at=now,
        )
    )


def find_cubes(connection: Connection, *, words: Sequence[str], base: str, kind: str, limit: int) -> list[PoolCube]:
    """Cubes that have every word somewhere in their text, newest first; an empty `base` or `kind` is any."""
    query = select(pool_cubes).order_by(pool_cubes.c.created_at.desc(), pool_cubes.c.pool_cube_id.desc())
    query = query.where(*conditions_of(words=words, base=base, kind=kind))
    return [to_cube(row) for row in connection.execute(query.limit(limit))]


def conditions_of(*, words: Sequence[str], base: str, kind: str) -> list[ColumnElement[bool]]:
    """What a cube must have to be found."""
    wanted = [pool_cubes.c.search_text.contains(word.lower(), autoescape=True) for word in words]
    if base:
        wanted.append(pool_cubes.c.base.contains(base, autoescape=True))
    if kind:
        wanted.append(pool_cubes.c.kind == kind)
    return wanted


def _to_manifest(row: Any) -> PoolManifest:
    return PoolManifest(
        repository=row.repository,
        digest=Digest(row.digest),
        media_type=row.media_type,
        artifact_type=row.artifact_type,
        subject=None if row.subject is None else Digest(row.subject),
        content=row.content,
    )


def to_cube(row: Any) -> PoolCube:
    return PoolCube(
        repository=row.repository,
        tag=row.tag,
        digest=Digest(row.cube_digest),
        manifest_digest=Digest(row.manifest_digest),
        kind=row.kind,
        base=row.base,
        title=row.title,
        tokens=row.tokens,
        payload_bytes=row.payload_bytes,
        licence=row.licence,
        produced_flops=row.produced_flops,
        gap_closed=row.gap_closed,
        created_at=row.created_at,
    )


def cubes_beginning_with(connection: Connection, prefix: str) -> list[tuple[Digest, str]]:
    """Cubes whose digest starts so (without `sha256:`), two at the most, and what they are called."""
    query = (
        select(pool_cubes.c.cube_digest, func.min(pool_cubes.c.repository + ":" + pool_cubes.c.tag))
        .where(pool_cubes.c.cube_digest.startswith("sha256:" + prefix, autoescape=True))
        .group_by(pool_cubes.c.cube_digest)
        .limit(2)
    )
    return [(Digest(row[0]), row[1]) for row in connection.execute(query)]
