"""Cubes that were published and taken back: out of the pool, but never forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from memgrid.digest import Digest
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.lifecycle import DocumentState
from memgrid_coordinator.records import Document
from memgrid_coordinator.store import campaigns, pool
from memgrid_coordinator.store.tables import document_units, documents, pool_cubes, retractions

LATEST = "latest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """A version of a cube that is not to be used any more, and why."""

    repository: str
    tag: str
    cube_digest: Digest
    reason: Reason
    at: datetime


def published_with(connection: Connection, unit_ids: Sequence[int]) -> list[Document]:
    """The documents whose cube holds the result of one of these units."""
    query = (
        select(documents.c.document_id)
        .join(document_units, document_units.c.document_id == documents.c.document_id)
        .where(document_units.c.unit_id.in_(list(unit_ids)), documents.c.state == DocumentState.PUBLISHED)
        .distinct()
    )
    return campaigns.documents_among(connection, list(connection.execute(query).scalars()))


def retract(connection: Connection, cube_digest: Digest, reason: Reason, now: datetime) -> list[str]:
    """Take a cube out of the pool wherever it is, and remember that; returns its names, REPOSITORY:TAG."""
    found = connection.execute(select(pool_cubes).where(pool_cubes.c.cube_digest == cube_digest)).all()
    for row in found:
        connection.execute(
            insert(retractions).values(
                repository=row.repository,
                tag=row.tag,
                cube_digest=row.cube_digest,
                manifest_digest=row.manifest_digest,
                reason_code=reason.code.value,
                reason_text=reason.text,
                at=now,
            )
        )
        digest = Digest(row.manifest_digest)
        for about in pool.manifests_of_subject(connection, row.repository, digest):
            pool.remove_manifest(connection, row.repository, about.digest)
        pool.remove_manifest(connection, row.repository, digest)
        _point_latest_elsewhere(connection, row.repository, now)
    return [f"{row.repository}:{row.tag}" for row in found]


def run_again(connection: Connection, document_id: int, reason: Reason, *, can_run: bool) -> None:
    """The guarded move of a published document back to running; to failed where its campaign is over for good."""
    state = DocumentState.RUNNING if can_run else DocumentState.FAILED
    ended = {} if can_run else {"reason_code": reason.code.value, "reason_text": reason.text}
    connection.execute(
        update(documents)
        .where(documents.c.document_id == document_id, documents.c.state == DocumentState.PUBLISHED)
        .values(state=state, cube="", cube_digest=None, **ended)
    )


def of_reference(connection: Connection, repository: str, reference: str) -> Retraction | None:
    """The newest retraction of what a tag or a manifest's digest named."""
    named = or_(retractions.c.tag == reference, retractions.c.manifest_digest == reference)
    query = select(retractions).where(retractions.c.repository == repository, named)
    row = connection.execute(query.order_by(retractions.c.retraction_id.desc()).limit(1)).one_or_none()
    return None if row is None else _retraction(row)


def of_cube(connection: Connection, cube_digest: Digest) -> list[Retraction]:
    """Every time that a cube was taken back."""
    query = select(retractions).where(retractions.c.cube_digest == cube_digest)
    return [_retraction(row) for row in connection.execute(query.order_by(retractions.c.retraction_id))]


def cubes_beginning_with(connection: Connection, prefix: str) -> list[tuple[Digest, str]]:
    """Retracted cubes whose digest starts so (without `sha256:`), and what they were called."""
    query = select(retractions).where(retractions.c.cube_digest.startswith("sha256:" + prefix, autoescape=True))
    found = {Digest(row.cube_digest): f"{row.repository}:{row.tag}" for row in connection.execute(query.limit(8))}
    return list(found.items())


def _point_latest_elsewhere(connection: Connection, repository: str, now: datetime) -> None:
    """Where the newest version is gone, the one before it is the newest."""
    if pool.digest_of_tag(connection, repository, LATEST) is not None:
        return
    left = select(pool_cubes.c.manifest_digest).where(pool_cubes.c.repository == repository)
    newest = connection.execute(left.order_by(pool_cubes.c.pool_cube_id.desc()).limit(1)).scalar()
    if newest is not None:
        pool.set_tag(connection, repository, LATEST, Digest(newest), now)


def _retraction(row: Any) -> Retraction:
    return Retraction(
        repository=row.repository,
        tag=row.tag,
        cube_digest=Digest(row.cube_digest),
        reason=Reason(code=ReasonCode(row.reason_code), text=row.reason_text),
        at=row.at,
    )
