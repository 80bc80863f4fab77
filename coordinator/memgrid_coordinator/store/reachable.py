"""Everything in rows that names content, page by page, and letting results go that nobody wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, or_, select, tuple_, update

from memgrid.digest import Digest
from memgrid_coordinator.lifecycle import ENDED_UNITS, HAVE_RESULTS, DocumentState, LeaseState, UnitState
from memgrid_coordinator.store.tables import (
    calibrations,
    campaigns,
    document_blobs,
    document_units,
    documents,
    leases,
    models,
    pool_blobs,
    pool_manifests,
    units,
)

ROWS = 500
"""In one page: a page takes milliseconds, so that who reads beside it does not notice."""
UNITS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Texts that may name content, and where to go on; `results` are the results that units had before they ended."""

    texts: tuple[bytes, ...]
    results: tuple[tuple[int, Digest], ...] = ()
    next_key: Any = None
    """None at the end."""


Walk = Callable[[Connection, Any, datetime], Page]
"""A page of rows after a key (None at the beginning); documents that failed since then count as living."""


def _is_living(failed_since: datetime) -> ColumnElement[bool]:
    """Documents that something may still be made of: running ones, and failed ones that may be taken up again."""
    campaign = campaigns.alias("its_campaign")
    ended = exists().where(campaign.c.campaign_id == documents.c.campaign_id, campaign.c.ended_at <= failed_since)
    return or_(documents.c.state == DocumentState.RUNNING, and_(documents.c.state == DocumentState.FAILED, ~ended))


def _is_wanted(failed_since: datetime) -> ColumnElement[bool]:
    """Units that have not ended, and those with a part in a living document."""
    has_part = exists().where(
        document_units.c.unit_id == units.c.unit_id,
        document_units.c.document_id == documents.c.document_id,
        _is_living(failed_since),
    )
    return or_(units.c.state.not_in(sorted(ENDED_UNITS)), has_part)


def in_manifests(connection: Connection, after: Any, failed_since: datetime) -> Page:
    """What is published, and models: all that a manifest names."""
    key = tuple_(pool_manifests.c.repository, pool_manifests.c.digest)
    query = select(pool_manifests.c.repository, pool_manifests.c.digest, pool_manifests.c.content).order_by(
        *key.clauses
    )
    return _page(connection, query if after is None else query.where(key > tuple_(*after)), keys=2)


def in_documents(connection: Connection, after: Any, failed_since: datetime) -> Page:
    """Their sources."""
    query = select(documents.c.document_id, documents.c.source_digest).where(_is_living(failed_since))
    query = query.order_by(documents.c.document_id)
    return _page(connection, query if after is None else query.where(documents.c.document_id > after[0]), keys=1)


def in_makings(connection: Connection, after: Any, failed_since: datetime) -> Page:
    """What the grid itself made for them."""
    key = tuple_(document_blobs.c.document_id, document_blobs.c.name)
    query = (
        select(document_blobs.c.document_id, document_blobs.c.name, document_blobs.c.digest, document_blobs.c.detail)
        .join(documents, documents.c.document_id == document_blobs.c.document_id)
        .where(_is_living(failed_since))
        .order_by(*key.clauses)
    )
    return _page(connection, query if after is None else query.where(key > tuple_(*after)), keys=2)


def in_models(connection: Connection, after: Any, failed_since: datetime) -> Page:
    """The files of models that somebody still computes with; they are few."""
    living = exists().where(
        campaigns.c.model == models.c.digest,
        documents.c.campaign_id == campaigns.c.campaign_id,
        _is_living(failed_since),
    )
    return Page(texts=_texts(connection.execute(select(models.c.files).where(living)), keys=0))


def in_calibrations(connection: Connection, after: Any, failed_since: datetime) -> Page:
    """What was measured of models: of every time, for verdicts were given by it; they are few."""
    query = select(calibrations.c.digest, calibrations.c.evidence)
    return Page(texts=_texts(connection.execute(query), keys=0))


def in_campaigns(connection: Connection, after: Any, failed_since: datetime) -> Page:
    """The files of campaigns that run."""
    living = exists().where(documents.c.campaign_id == campaigns.c.campaign_id, _is_living(failed_since))
    query = select(campaigns.c.campaign_id, campaigns.c.spec).where(living).order_by(campaigns.c.campaign_id)
    return _page(connection, query if after is None else query.where(campaigns.c.campaign_id > after[0]), keys=1)


def in_units(connection: Connection, after: Any, failed_since: datetime) -> Page:
    """What units read and made. The results of the others are listed by unit: they may be let go."""
    first = 0 if after is None else after[0]
    last = first + UNITS
    here = and_(units.c.unit_id > first, units.c.unit_id <= last)
    wanted = _is_wanted(failed_since)
    columns = select(units.c.spec, func.coalesce(units.c.output_digest, "")).where(here, wanted)
    reported = (
        select(leases.c.outputs)
        .join(units, units.c.unit_id == leases.c.unit_id)
        .where(here, wanted, leases.c.state.in_([LeaseState.REPORTED, LeaseState.AGREED]))
    )
    unwanted = select(units.c.unit_id, units.c.output_digest).where(
        here, units.c.state == UnitState.ACCEPTED, units.c.output_digest.is_not(None), ~wanted
    )
    texts = [*_texts(connection.execute(columns), keys=0), *_texts(connection.execute(reported), keys=0)]
    results = tuple((row[0], Digest(row[1])) for row in connection.execute(unwanted))
    newest = connection.execute(select(func.max(units.c.unit_id))).scalar() or 0
    return Page(texts=tuple(texts), results=results, next_key=(last,) if last < newest else None)


WALKS: tuple[Walk, ...] = (
    in_manifests, in_campaigns, in_documents, in_makings, in_models, in_calibrations, in_units,
)  # fmt: skip


def let_results_go(connection: Connection, unit_ids: Sequence[int], failed_since: datetime) -> set[Digest]:
    """Forget the results of these units but for those that somebody wants by now; returns the ones still wanted.

    Whoever wants such a unit later has it computed again.
    """
    child = units.alias()
    continued = exists().where(child.c.parent_id == units.c.unit_id, child.c.state.not_in(sorted(ENDED_UNITS)))
    wanted = or_(_is_wanted(failed_since), continued)
    these = units.c.unit_id.in_(list(unit_ids))
    kept = connection.execute(select(units.c.output_digest).where(these, wanted)).scalars()
    still = {Digest(digest) for digest in kept if digest is not None}
    connection.execute(update(units).where(these, ~wanted).values(output_digest=None))
    return still


def units_with_result(connection: Connection, digest: Digest) -> list[int]:
    """The units whose result some content is."""
    query = select(units.c.unit_id).where(units.c.output_digest == digest, units.c.state.in_(sorted(HAVE_RESULTS)))
    return list(connection.execute(query).scalars())


def without_results(connection: Connection, unit_ids: Sequence[int]) -> None:
    """The results of these are lost, whoever wants them."""
    connection.execute(update(units).where(units.c.unit_id.in_(list(unit_ids))).values(output_digest=None))


def wanted_of(connection: Connection, unit_ids: Sequence[int], failed_since: datetime) -> list[int]:
    """Of these units, the ones that a living document has a part in."""
    query = select(units.c.unit_id).where(units.c.unit_id.in_(list(unit_ids)), _is_wanted(failed_since))
    return list(connection.execute(query).scalars())


def unlink_everywhere(connection: Connection, digests: Sequence[Digest]) -> None:
    """This content is gone: no repository has it any more."""
    connection.execute(delete(pool_blobs).where(pool_blobs.c.digest.in_(list(digests))))


def manifests_naming(connection: Connection, digest: Digest) -> list[tuple[str, Digest]]:
    """Repository and digest of every manifest that names some content."""
    linked = select(pool_blobs.c.repository).where(pool_blobs.c.digest == digest)
    query = select(pool_manifests).where(pool_manifests.c.repository.in_(linked))
    return [
        (row.repository, Digest(row.digest)) for row in connection.execute(query) if digest.encode() in row.content
    ]


def _page(connection: Connection, query: Select[Any], *, keys: int) -> Page:
    rows = list(connection.execute(query.limit(ROWS)))
    next_key = tuple(rows[-1][:keys]) if len(rows) == ROWS else None
    return Page(texts=tuple(_texts(rows, keys=keys)), next_key=next_key)


def _texts(rows: Any, *, keys: int) -> tuple[bytes, ...]:
    return tuple(_gathered(rows, keys))


def _gathered(rows: Any, keys: int) -> Iterator[bytes]:
    for row in rows:
        for value in row[keys:]:
            yield value if isinstance(value, bytes) else bytes(str(value), "utf-8")
