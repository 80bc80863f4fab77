"""Campaigns, their documents, and which units those are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, case, func, insert, select, update

from memgrid.digest import Digest
from memgrid.units import Reason, UnitKey
from memgrid_coordinator.lifecycle import (
    CAMPAIGN_MOVES,
    ENDED_CAMPAIGNS,
    ENDED_UNITS,
    CampaignState,
    DocumentState,
    LeaseState,
    UnitState,
)
from memgrid_coordinator.progress import Progress
from memgrid_coordinator.records import Campaign, CampaignId, Document, Made, NewDocument
from memgrid_coordinator.store.events import reason_from
from memgrid_coordinator.store.tables import campaigns, document_blobs, document_units, documents, leases, units


def add(
    connection: Connection,
    campaign_id: CampaignId,
    *,
    request_id: str,
    name: str,
    recipe: str,
    model: str,
    spec: str,
    priority: int,
    now: datetime,
) -> None:
    connection.execute(
        insert(campaigns).values(
            campaign_id=campaign_id,
            request_id=request_id,
            name=name,
            state=CampaignState.RUNNING,
            recipe=recipe,
            model=model,
            spec=spec,
            priority=priority,
            created_at=now,
        )
    )


def add_documents(
    connection: Connection,
    campaign_id: CampaignId,
    new: Sequence[NewDocument],
    unit_ids: Mapping[UnitKey, int],
) -> list[int]:
    """Create the documents of a new campaign, each of its units in their order; returns their ids."""
    rows = [
        {
            "campaign_id": campaign_id,
            "name": document.name,
            "state": DocumentState.RUNNING,
            "source_uri": document.source_uri,
            "source_digest": document.source_digest,
            "licence": document.licence,
            "tokens": document.tokens,
            "cube": "",
            "reason_text": "",
            "progress": document.progress.to_text(),
        }
        for document in new
    ]
    connection.execute(insert(documents), rows)
    query = select(documents.c.name, documents.c.document_id).where(documents.c.campaign_id == campaign_id)
    ids = {row.name: row.document_id for row in connection.execute(query)}
    members = [
        {"document_id": ids[document.name], "position": position, "unit_id": unit_ids[unit.key]}
        for document in new
        for position, unit in enumerate(document.units)
    ]
    if members:
        connection.execute(insert(document_units), members)
    for document in new:
        for made in document.made:
            add_made(connection, ids[document.name], made)
    return [ids[document.name] for document in new]


def add_units(connection: Connection, document_id: int, unit_ids: Sequence[int]) -> None:
    """Let these follow the units that a document has."""
    last = select(func.max(document_units.c.position)).where(document_units.c.document_id == document_id)
    position = connection.execute(last).scalar()
    begin = 0 if position is None else position + 1
    rows = [
        {"document_id": document_id, "position": position, "unit_id": unit_id}
        for position, unit_id in enumerate(unit_ids, start=begin)
    ]
    if rows:
        connection.execute(insert(document_units), rows)


def add_made(connection: Connection, document_id: int, made: Made) -> None:
    """Keep what was made for a document; its name is new to it."""
    connection.execute(
        insert(document_blobs).values(document_id=document_id, name=made.name, digest=made.digest, detail=made.detail)
    )


def made_of(connection: Connection, document_id: int) -> dict[str, Made]:
    """What was made for a document, by name."""
    query = select(document_blobs).where(document_blobs.c.document_id == document_id)
    return {
        row.name: Made(name=row.name, digest=Digest(row.digest), detail=row.detail)
        for row in connection.execute(query.order_by(document_blobs.c.name))
    }


def set_progress(connection: Connection, document_id: int, progress: Progress) -> bool:
    """Say how far a running document is; returns whether that is news."""
    moved = connection.execute(
        update(documents)
        .where(
            documents.c.document_id == document_id,
            documents.c.state == DocumentState.RUNNING,
            documents.c.progress != progress.to_text(),
        )
        .values(progress=progress.to_text())
    )
    return moved.rowcount == 1


def of_request(connection: Connection, request_id: str) -> CampaignId | None:
    found = connection.execute(select(campaigns.c.campaign_id).where(campaigns.c.request_id == request_id)).scalar()
    return None if found is None else CampaignId(found)


def beginning_with(connection: Connection, prefix: str) -> list[CampaignId]:
    """Ids that start so, two at the most: enough to know whether it is one."""
    query = (
        select(campaigns.c.campaign_id).where(campaigns.c.campaign_id.startswith(prefix, autoescape=True)).limit(2)
    )
    return [CampaignId(found) for found in connection.execute(query).scalars()]


def newest(connection: Connection, limit: int) -> list[CampaignId]:
    query = select(campaigns.c.campaign_id).order_by(campaigns.c.created_at.desc()).limit(limit)
    return [CampaignId(found) for found in connection.execute(query).scalars()]


def count_by_state(connection: Connection) -> dict[str, int]:
    query = select(campaigns.c.state, func.count()).group_by(campaigns.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def get(connection: Connection, campaign_id: CampaignId, *, fleet: Sequence[float] = ()) -> Campaign:
    """A campaign with its documents and sums; the caller knows that it exists.

    `fleet` is the FLOP/s of each host alive, slowest first, for the time that is left.
    """
    row = connection.execute(select(campaigns).where(campaigns.c.campaign_id == campaign_id)).one()
    unit_rows = _unit_sums(connection, campaign_id)
    lease_rows = _lease_sums(connection, campaign_id)
    by_verdict: dict[str, int] = {}
    for lease in lease_rows:
        by_verdict[lease.state] = by_verdict.get(lease.state, 0) + lease.rows
    accepted = [unit for unit in unit_rows if unit.state == UnitState.ACCEPTED]
    found = documents_of(connection, campaign_id)
    return Campaign(
        campaign_id=campaign_id,
        name=row.name,
        state=CampaignState(row.state),
        model=row.model,
        created_at=row.created_at,
        ended_at=row.ended_at,
        units_by_state={unit.state: unit.rows for unit in unit_rows},
        reports_by_verdict=by_verdict,
        rejections_by_reason={
            lease.reason_code: lease.rows for lease in lease_rows if lease.state == LeaseState.REJECTED
        },
        tokens=sum(unit.tokens for unit in unit_rows),
        tokens_accepted=sum(unit.tokens for unit in accepted),
        produced_flops=sum(unit.flops for unit in accepted),
        spent_flops=sum(lease.flops for lease in lease_rows if lease.state in _COMPUTED),
        documents=tuple(found),
        eta_s=eta_s(
            sum(unit.flops_left for unit in unit_rows if unit.state not in ENDED_UNITS),
            [document.progress.ahead_flops for document in found if document.state is DocumentState.RUNNING],
            fleet,
        ),
        recipe=row.recipe,
        device_hours=device_hours(connection, campaign_id),
    )


def eta_s(left_flops: float, ahead_flops: Sequence[float], fleet: Sequence[float]) -> float | None:
    """Seconds for the units that exist, and for those to come: of one document they follow one another."""
    if not fleet or not left_flops + sum(ahead_flops):
        return None
    together, usual = sum(fleet), fleet[len(fleet) // 2]
    return left_flops / together + max(sum(ahead_flops) / together, max(ahead_flops, default=0) / usual)


_ACTIVATION = "activation"
"""The recipe whose documents are done when their units are; all others advance in stages."""
_COMPUTED = (LeaseState.REPORTED, LeaseState.AGREED, LeaseState.REJECTED)


def device_hours(connection: Connection, campaign_id: CampaignId) -> float:
    """What hosts said they computed for a campaign, replicas and rejected reports included."""
    query = select(func.coalesce(func.sum(leases.c.compute_s), 0.0))
    seconds = connection.execute(query.where(leases.c.unit_id.in_(_unit_ids(campaign_id)))).scalar_one()
    return float(seconds) / 3600


def state_of(connection: Connection, campaign_id: CampaignId) -> CampaignState:
    query = select(campaigns.c.state).where(campaigns.c.campaign_id == campaign_id)
    return CampaignState(connection.execute(query).scalar_one())


def spec_of(connection: Connection, campaign_id: CampaignId) -> str:
    """The campaign file, as canonical JSON."""
    spec: str = connection.execute(
        select(campaigns.c.spec).where(campaigns.c.campaign_id == campaign_id)
    ).scalar_one()
    return spec


def documents_of(connection: Connection, campaign_id: CampaignId) -> list[Document]:
    return _documents(connection, documents.c.campaign_id == campaign_id)


def documents_among(connection: Connection, document_ids: Sequence[int]) -> list[Document]:
    """Those of them that are there."""
    return _documents(connection, documents.c.document_id.in_(document_ids))


def document(connection: Connection, document_id: int) -> Document:
    return _documents(connection, documents.c.document_id == document_id)[0]


def units_of(connection: Connection, document_id: int) -> list[int]:
    """The units of a document, in order."""
    query = (
        select(document_units.c.unit_id)
        .where(document_units.c.document_id == document_id)
        .order_by(document_units.c.position)
    )
    return list(connection.execute(query).scalars())


def units_of_cube(connection: Connection, cube_digest: Digest) -> list[int]:
    """The units that a published cube was made of, in order."""
    query = select(documents.c.document_id).where(documents.c.cube_digest == cube_digest).limit(1)
    document_id = connection.execute(query).scalar()
    return [] if document_id is None else units_of(connection, document_id)


def complete_documents(connection: Connection, limit: int) -> list[int]:
    """Running documents of running campaigns all of whose units are accepted: ready to become cubes."""
    unfinished = (
        select(document_units.c.document_id)
        .join(units, units.c.unit_id == document_units.c.unit_id)
        .where(document_units.c.document_id == documents.c.document_id, units.c.state != UnitState.ACCEPTED)
    )
    query = (
        select(documents.c.document_id)
        .join(campaigns, campaigns.c.campaign_id == documents.c.campaign_id)
        .where(
            documents.c.state == DocumentState.RUNNING,
            campaigns.c.state == CampaignState.RUNNING,
            campaigns.c.recipe == _ACTIVATION,
            ~unfinished.exists(),
        )
        .order_by(documents.c.document_id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def hopeless_documents(connection: Connection, kinds: Sequence[str], limit: int) -> list[int]:
    """Running documents of running campaigns with a failed unit: whether that is their end, their recipe says."""
    # From the failed units on, which are few among perhaps a million; the kinds open their index.
    failed = select(units.c.unit_id).where(units.c.kind.in_(kinds), units.c.state == UnitState.FAILED)
    theirs = select(document_units.c.document_id).where(document_units.c.unit_id.in_(failed))
    query = (
        select(documents.c.document_id)
        .join(campaigns, campaigns.c.campaign_id == documents.c.campaign_id)
        .where(
            documents.c.document_id.in_(theirs),
            documents.c.state == DocumentState.RUNNING,
            campaigns.c.state == CampaignState.RUNNING,
            campaigns.c.recipe == _ACTIVATION,
        )
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def staged_documents(connection: Connection, since: datetime | None) -> list[int]:
    """Running documents of running campaigns that advance in stages: all, or those with a unit that ended since."""
    query = (
        select(documents.c.document_id)
        .join(campaigns, campaigns.c.campaign_id == documents.c.campaign_id)
        .where(
            documents.c.state == DocumentState.RUNNING,
            campaigns.c.state == CampaignState.RUNNING,
            campaigns.c.recipe != _ACTIVATION,
        )
        .order_by(documents.c.document_id)
    )
    if since is not None:
        lately = (
            select(document_units.c.document_id)
            .join(units, units.c.unit_id == document_units.c.unit_id)
            .where(document_units.c.document_id == documents.c.document_id, units.c.settled_at >= since)
        )
        # Document by document: there are few that advance in stages, and many units that have ended lately.
        query = query.where(lately.exists())
    return list(connection.execute(query).scalars())


def in_state(connection: Connection, state: CampaignState) -> list[tuple[CampaignId, str]]:
    """Campaigns in a state, with their files as canonical JSON."""
    query = select(campaigns.c.campaign_id, campaigns.c.spec).where(campaigns.c.state == state)
    return [(CampaignId(row[0]), row[1]) for row in connection.execute(query)]


def without_running_documents(connection: Connection) -> list[tuple[CampaignId, bool]]:
    """Running campaigns whose documents have all ended, and whether one of them failed."""
    still = select(documents.c.document_id).where(
        documents.c.campaign_id == campaigns.c.campaign_id, documents.c.state == DocumentState.RUNNING
    )
    failed = select(documents.c.document_id).where(
        documents.c.campaign_id == campaigns.c.campaign_id, documents.c.state == DocumentState.FAILED
    )
    query = select(campaigns.c.campaign_id, failed.exists()).where(
        campaigns.c.state == CampaignState.RUNNING, ~still.exists()
    )
    return [(CampaignId(row[0]), bool(row[1])) for row in connection.execute(query)]


def end_document(
    connection: Connection,
    document_id: int,
    state: DocumentState,
    *,
    cube: str = "",
    cube_digest: Digest | None = None,
    reason: Reason | None = None,
) -> bool:
    """The guarded move of a running document to its end."""
    moved = connection.execute(
        update(documents)
        .where(documents.c.document_id == document_id, documents.c.state == DocumentState.RUNNING)
        .values(
            state=state,
            cube=cube,
            cube_digest=cube_digest,
            reason_code=None if reason is None else reason.code.value,
            reason_text="" if reason is None else reason.text,
        )
    )
    return moved.rowcount == 1


def retry_document(connection: Connection, document_id: int) -> bool:
    """The guarded move of a failed document back to running; what was made for it stays."""
    moved = connection.execute(
        update(documents)
        .where(documents.c.document_id == document_id, documents.c.state == DocumentState.FAILED)
        .values(state=DocumentState.RUNNING, reason_code=None, reason_text="", retries=documents.c.retries + 1)
    )
    return moved.rowcount == 1


def move(connection: Connection, campaign_id: CampaignId, verb: str, now: datetime) -> bool:
    """The guarded move of a campaign; False when it was in no state that it starts from."""
    sources, target = CAMPAIGN_MOVES[verb]
    ended_at = now if target in ENDED_CAMPAIGNS else None
    moved = connection.execute(
        update(campaigns)
        .where(campaigns.c.campaign_id == campaign_id, campaigns.c.state.in_(sorted(sources)))
        .values(state=target, ended_at=ended_at)
    )
    return moved.rowcount == 1


def hold_units(connection: Connection, campaign_id: CampaignId) -> int:
    """Hand out units of a campaign only where a running one wants them; returns how many moved.

    Called after the campaign was paused, resumed, or ended.
    """
    wanted = (
        select(document_units.c.unit_id)
        .join(documents, documents.c.document_id == document_units.c.document_id)
        .join(campaigns, campaigns.c.campaign_id == documents.c.campaign_id)
        .where(
            document_units.c.unit_id == units.c.unit_id,
            documents.c.state == DocumentState.RUNNING,
            campaigns.c.state == CampaignState.RUNNING,
        )
        .exists()
    )
    own = units.c.unit_id.in_(_unit_ids(campaign_id))
    alive = units.c.state.in_([UnitState.WAITING, UnitState.OPEN, UnitState.CHECKING])
    held = connection.execute(update(units).where(own, alive, ~wanted, ~units.c.on_hold).values(on_hold=True))
    freed = connection.execute(update(units).where(own, wanted, units.c.on_hold).values(on_hold=False))
    return held.rowcount + freed.rowcount


def wanted_elsewhere(connection: Connection, document_id: int, unit_ids: Sequence[int]) -> set[int]:
    """Of these units, those that another running document needs."""
    query = (
        select(document_units.c.unit_id)
        .join(documents, documents.c.document_id == document_units.c.document_id)
        .where(
            document_units.c.unit_id.in_(list(unit_ids)),
            documents.c.document_id != document_id,
            documents.c.state == DocumentState.RUNNING,
        )
    )
    return set(connection.execute(query).scalars())


def unwanted_units(connection: Connection) -> list[int]:
    """Unsettled units that no running document needs any more."""
    wanted = (
        select(document_units.c.unit_id)
        .join(documents, documents.c.document_id == document_units.c.document_id)
        .where(document_units.c.unit_id == units.c.unit_id, documents.c.state == DocumentState.RUNNING)
    )
    query = select(units.c.unit_id).where(
        units.c.state.in_([UnitState.WAITING, UnitState.OPEN, UnitState.CHECKING]), ~wanted.exists()
    )
    return list(connection.execute(query).scalars())


def _unit_sums(connection: Connection, campaign_id: CampaignId) -> Sequence[Row[Any]]:
    query = (
        select(
            units.c.state,
            func.count().label("rows"),
            func.sum(units.c.token_count).label("tokens"),
            func.sum(units.c.flops).label("flops"),
            func.sum(units.c.flops * units.c.min_replicas).label("flops_left"),
        )
        .where(units.c.unit_id.in_(_unit_ids(campaign_id)))
        .group_by(units.c.state)
    )
    return connection.execute(query).all()


def _lease_sums(connection: Connection, campaign_id: CampaignId) -> Sequence[Row[Any]]:
    query = (
        select(
            leases.c.state,
            leases.c.reason_code,
            func.count().label("rows"),
            func.sum(units.c.flops).label("flops"),
        )
        .join(units, units.c.unit_id == leases.c.unit_id)
        .where(leases.c.unit_id.in_(_unit_ids(campaign_id)))
        .group_by(leases.c.state, leases.c.reason_code)
    )
    return connection.execute(query).all()


def _unit_ids(campaign_id: CampaignId) -> Any:
    return (
        select(document_units.c.unit_id)
        .join(documents, documents.c.document_id == document_units.c.document_id)
        .where(documents.c.campaign_id == campaign_id)
    )


def _documents(connection: Connection, where: Any) -> list[Document]:
    accepted = func.sum(case((units.c.state == UnitState.ACCEPTED, 1), else_=0))
    query = (
        select(documents, func.count().label("units"), accepted.label("units_accepted"))
        .join(document_units, document_units.c.document_id == documents.c.document_id)
        .join(units, units.c.unit_id == document_units.c.unit_id)
        .where(where)
        .group_by(*documents.c)
        .order_by(documents.c.document_id)
    )
    return [_document(row) for row in connection.execute(query)]


def _document(row: Any) -> Document:
    return Document(
        document_id=row.document_id,
        campaign_id=CampaignId(row.campaign_id),
        name=row.name,
        state=DocumentState(row.state),
        source_uri=row.source_uri,
        source_digest=Digest(row.source_digest),
        licence=row.licence,
        tokens=row.tokens,
        units=row.units,
        units_accepted=row.units_accepted,
        cube=row.cube,
        cube_digest=None if row.cube_digest is None else Digest(row.cube_digest),
        reason=reason_from(row.reason_code, row.reason_text),
        progress=Progress.from_text(row.progress),
    )
