"""Campaigns for the pages: a page of a list at a time, with sums in one statement for all that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from memgrid_coordinator.lifecycle import ENDED_UNITS, CampaignState, DocumentState, LeaseState, UnitState
from memgrid_coordinator.progress import Progress
from memgrid_coordinator.records import CampaignId, Document
from memgrid_coordinator.store import campaigns as campaign_store
from memgrid_coordinator.store.overview import accumulated, as_float, column_of
from memgrid_coordinator.store.tables import campaigns, credits, document_units, documents, leases, units
from memgrid_coordinator.views import CampaignLine, DocumentLine

_COMPUTED = (LeaseState.REPORTED, LeaseState.AGREED, LeaseState.REJECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What hosts did for a campaign, replicas and rejected reports included."""

    reports_by_state: dict[str, int]
    rejections: tuple[tuple[str, int], ...]
    spent_flops: float
    volunteers: int


def newest(connection: Connection, *, state: CampaignState | None, skip: int, limit: int) -> list[CampaignId]:
    """Ids, newest first."""
    query = select(campaigns.c.campaign_id).order_by(campaigns.c.created_at.desc(), campaigns.c.campaign_id)
    if state is not None:
        query = query.where(campaigns.c.state == state)
    return [CampaignId(found) for found in connection.execute(query.offset(skip).limit(limit)).scalars()]


def lines(
    connection: Connection, campaign_ids: Sequence[CampaignId], fleet: Sequence[float]
) -> tuple[CampaignLine, ...]:
    """These campaigns, in this order; `fleet` is the FLOP/s of each host alive, slowest first."""
    found = {
        row.campaign_id: row
        for row in connection.execute(select(campaigns).where(campaigns.c.campaign_id.in_(campaign_ids)))
    }
    documents_of, ahead = _document_sums(connection, campaign_ids), _ahead(connection, campaign_ids)
    units_of = _unit_sums(connection, campaign_ids)
    return tuple(
        _line(found[one], documents_of.get(one, {}), units_of.get(one, []), ahead.get(one, []), fleet)
        for one in campaign_ids
    )


def work(connection: Connection, campaign_id: CampaignId) -> Work:
    """What its leases came to."""
    own = leases.c.unit_id.in_(_unit_ids(campaign_id))
    by_state = (
        select(leases.c.state, func.count().label("rows"), func.sum(as_float(units.c.flops)).label("flops"))
        .join(units, units.c.unit_id == leases.c.unit_id)
        .where(own)
        .group_by(leases.c.state)
    )
    rows = connection.execute(by_state).all()
    reasons = (
        select(leases.c.reason_code, func.count())
        .where(own, leases.c.state == LeaseState.REJECTED)
        .group_by(leases.c.reason_code)
        .order_by(func.count().desc())
    )
    givers = select(func.count(credits.c.account_id.distinct())).where(
        credits.c.lease_id.in_(select(leases.c.lease_id).where(own, leases.c.state == LeaseState.AGREED))
    )
    return Work(
        reports_by_state={row.state: int(row.rows) for row in rows},
        rejections=tuple((row[0] or "other", int(row[1])) for row in connection.execute(reasons)),
        spent_flops=sum(float(row.flops) for row in rows if row.state in _COMPUTED),
        volunteers=int(connection.execute(givers).scalar_one()),
    )


def progress(
    connection: Connection, campaign_id: CampaignId, start: datetime, width: timedelta, columns: int
) -> tuple[tuple[datetime, int], ...]:
    """Tokens accepted by the end of each column; what others had computed before counts from the start."""
    column = column_of(units.c.settled_at, start, width).label("bucket")
    query = (
        select(column, func.sum(units.c.token_count))
        .where(units.c.unit_id.in_(_unit_ids(campaign_id)), units.c.state == UnitState.ACCEPTED)
        .group_by(column)
    )
    by_column = {int(row[0] or 0): int(row[1]) for row in connection.execute(query)}
    before = sum(found for index, found in by_column.items() if index < 0)
    return accumulated(before, by_column, start, width, columns)


def page_of_documents(
    connection: Connection, campaign_id: CampaignId, *, skip: int, limit: int
) -> tuple[DocumentLine, ...]:
    """Some of its documents: what failed and what is under way before what is done."""
    rank = func.instr if connection.dialect.name == "sqlite" else func.strpos
    order = rank(" failed running published cancelled", documents.c.state)
    wanted = (
        select(documents.c.document_id)
        .where(documents.c.campaign_id == campaign_id)
        .order_by(order, documents.c.document_id)
        .offset(skip)
        .limit(limit)
    )
    document_ids = list(connection.execute(wanted).scalars())
    found = {one.document_id: one for one in campaign_store.documents_among(connection, document_ids)}
    return tuple(_document_line(found[one]) for one in document_ids if one in found)


def _document_sums(connection: Connection, campaign_ids: Sequence[CampaignId]) -> dict[str, dict[DocumentState, int]]:
    query = (
        select(documents.c.campaign_id, documents.c.state, func.count().label("rows"))
        .where(documents.c.campaign_id.in_(campaign_ids))
        .group_by(documents.c.campaign_id, documents.c.state)
    )
    sums: dict[str, dict[DocumentState, int]] = {}
    for row in connection.execute(query):
        sums.setdefault(row.campaign_id, {})[DocumentState(row.state)] = int(row.rows)
    return sums


def _unit_sums(connection: Connection, campaign_ids: Sequence[CampaignId]) -> dict[str, list[Any]]:
    """By state; a unit counts once a campaign, however many of its documents it belongs to."""
    own = (
        select(documents.c.campaign_id, document_units.c.unit_id)
        .join(document_units, document_units.c.document_id == documents.c.document_id)
        .where(documents.c.campaign_id.in_(campaign_ids))
        .distinct()
        .subquery()
    )
    query = (
        select(
            own.c.campaign_id,
            units.c.state,
            func.count().label("rows"),
            func.sum(units.c.token_count).label("tokens"),
            func.sum(as_float(units.c.flops)).label("flops"),
            func.sum(as_float(units.c.flops) * units.c.min_replicas).label("flops_left"),
        )
        .join(units, units.c.unit_id == own.c.unit_id)
        .group_by(own.c.campaign_id, units.c.state)
    )
    sums: dict[str, list[Any]] = {}
    for row in connection.execute(query):
        sums.setdefault(row.campaign_id, []).append(row)
    return sums


def _ahead(connection: Connection, campaign_ids: Sequence[CampaignId]) -> dict[str, list[int]]:
    """FLOPs that running documents will still ask for, beyond the units that exist."""
    query = select(documents.c.campaign_id, documents.c.progress).where(
        documents.c.campaign_id.in_(campaign_ids),
        documents.c.state == DocumentState.RUNNING,
        documents.c.progress != "",
    )
    ahead: dict[str, list[int]] = {}
    for row in connection.execute(query):
        ahead.setdefault(row.campaign_id, []).append(Progress.from_text(row.progress).ahead_flops)
    return ahead


def _line(
    row: Any,
    documents_by_state: dict[DocumentState, int],
    by_state: Sequence[Any],
    ahead_flops: Sequence[int],
    fleet: Sequence[float],
) -> CampaignLine:
    accepted = [one for one in by_state if one.state == UnitState.ACCEPTED]
    left_flops = sum(float(one.flops_left) for one in by_state if one.state not in ENDED_UNITS)
    state = CampaignState(row.state)
    return CampaignLine(
        campaign_id=CampaignId(row.campaign_id),
        name=row.name,
        state=state,
        recipe=row.recipe,
        model=row.model,
        created_at=row.created_at,
        ended_at=row.ended_at,
        documents_by_state=documents_by_state,
        units_by_state={one.state: int(one.rows) for one in by_state},
        tokens=sum(int(one.tokens) for one in by_state),
        tokens_accepted=sum(int(one.tokens) for one in accepted),
        produced_flops=sum(float(one.flops) for one in accepted),
        eta_s=campaign_store.eta_s(int(left_flops), ahead_flops, fleet) if state is CampaignState.RUNNING else None,
    )


def _document_line(document: Document) -> DocumentLine:
    progress = document.progress
    return DocumentLine(
        name=document.name,
        state=document.state,
        tokens=document.tokens,
        units=document.units,
        units_accepted=document.units_accepted,
        cube=document.cube,
        reason=document.reason,
        stage=None if progress.stage is None else progress.stage.value,
        steps=progress.steps,
        steps_total=progress.steps_total,
        losses=progress.losses,
        gap_closed=None if progress.quality is None else progress.quality.gap_closed,
    )


def _unit_ids(campaign_id: CampaignId) -> Any:
    return (
        select(document_units.c.unit_id)
        .join(documents, documents.c.document_id == document_units.c.document_id)
        .where(documents.c.campaign_id == campaign_id)
    )
