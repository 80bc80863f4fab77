"""The append-only log of everything that happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select

from memgrid.units import HostId, Reason, ReasonCode
from memgrid_coordinator.records import Event
from memgrid_coordinator.store.tables import document_units, documents, events


def append(connection: Connection, happened: Sequence[Event]) -> None:
    """Write events, in order, in one statement; within `gathered` at its end."""
    if not happened:
        return
    rows = [_to_row(event) for event in happened]
    waiting: list[dict[str, Any]] | None = connection.info.get(_GATHERED)
    if waiting is None:
        connection.execute(_APPEND, rows)
    else:
        waiting += rows


@contextmanager
def gathered(connection: Connection) -> Iterator[None]:
    """Events that are appended meanwhile are written together: a step of the writer tells of several things."""
    waiting: list[dict[str, Any]] = []
    connection.info[_GATHERED] = waiting
    try:
        yield
    finally:
        del connection.info[_GATHERED]
    if waiting:
        connection.execute(_APPEND, waiting)


def of(connection: Connection, where: ColumnElement[bool], limit: int) -> list[Event]:
    """The newest `limit` events that match, oldest first."""
    query = select(events).where(where).order_by(events.c.event_id.desc()).limit(limit)
    return [_from_row(row) for row in reversed(connection.execute(query).all())]


def of_unit(connection: Connection, unit_id: int, limit: int = 1000) -> list[Event]:
    return of(connection, events.c.unit_id == unit_id, limit)


def of_units(
    connection: Connection, unit_ids: Sequence[int], names: Sequence[str], limit: int = 10_000
) -> list[Event]:
    """What happened to some units, as far as it has one of these names."""
    return of(connection, events.c.unit_id.in_(list(unit_ids)) & events.c.name.in_(list(names)), limit)


def of_host(connection: Connection, host_id: str, limit: int = 1000) -> list[Event]:
    return of(connection, events.c.host_id == host_id, limit)


def of_campaign(connection: Connection, campaign_id: str, limit: int = 1000) -> list[Event]:
    """What happened to the campaign, and what went wrong with its units."""
    its_units = (
        select(document_units.c.unit_id)
        .join(documents, documents.c.document_id == document_units.c.document_id)
        .where(documents.c.campaign_id == campaign_id)
    )
    trouble = events.c.unit_id.in_(its_units) & events.c.name.in_(_TROUBLE)
    return of(connection, or_(events.c.campaign_id == campaign_id, trouble), limit)


def of_cube(connection: Connection, cube_digest: str, limit: int = 1000) -> list[Event]:
    return of(connection, events.c.cube_digest == cube_digest, limit)


_APPEND = insert(events)
_GATHERED = "memgrid_events"
_TROUBLE = ("report_rejected", "report_refused", "upload_refused", "upload_failed", "unit_reopened", "unit_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """As much of an event as says whom it concerns."""

    event_id: int
    name: str
    host_id: HostId | None


def newest(connection: Connection) -> int:
    """The id of the last event; 0 when there is none."""
    found: int = connection.execute(select(func.coalesce(func.max(events.c.event_id), 0))).scalar_one()
    return found


def after(connection: Connection, event_id: int, limit: int) -> list[Heard]:
    """What came after an event, in order."""
    query = select(events.c.event_id, events.c.name, events.c.host_id).where(events.c.event_id > event_id)
    found = connection.execute(query.order_by(events.c.event_id).limit(limit))
    return [
        Heard(event_id=row.event_id, name=row.name, host_id=None if row.host_id is None else HostId(row.host_id))
        for row in found
    ]


def _to_row(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "name": event.name,
        "unit_id": event.unit_id,
        "lease_id": event.lease_id,
        "host_id": event.host_id,
        "campaign_id": event.campaign_id,
        "cube_digest": event.cube_digest,
        "reason_code": event.reason.code.value if event.reason else None,
        "reason_text": event.reason.text if event.reason else "",
        "detail": event.detail,
    }


def _from_row(row: Any) -> Event:
    return Event(
        at=row.at,
        name=row.name,
        unit_id=row.unit_id,
        lease_id=row.lease_id,
        host_id=row.host_id,
        campaign_id=row.campaign_id,
        cube_digest=row.cube_digest,
        reason=reason_from(row.reason_code, row.reason_text),
        detail=row.detail,
    )


def reason_from(code: str | None, text: str) -> Reason | None:
    """A reason as two columns hold it."""
    return None if code is None else Reason(code=ReasonCode(code), text=text)
