"""Audits that are wanted, and what those showed that are done: the evidence behind every result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, text, update

from memgrid.kinds.audit import Zone
from memgrid.units import HostId, LeaseId
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.policy.trust import ClassRecord
from memgrid_coordinator.records import AuditPurpose, AuditState, DoneAudit, Look, Replay, WantedAudit
from memgrid_coordinator.store import leases as stored_leases
from memgrid_coordinator.store.tables import audits, leases, units


def want(connection: Connection, wanted: Sequence[WantedAudit]) -> None:
    """Have these done; one that is wanted of the same lease already stays as it is, unless it is now due sooner."""
    if not wanted:
        return
    ids = [audit.lease.lease_id for audit in wanted]
    known = select(audits.c.lease_id).where(audits.c.lease_id.in_(ids), audits.c.state == AuditState.WANTED)
    there = set(connection.execute(known).scalars())
    if rows := [_to_row(audit) for audit in wanted if audit.lease.lease_id not in there]:
        connection.execute(_WANT, rows)
    if sooner := [audit for audit in wanted if audit.lease.lease_id in there]:
        connection.execute(_SOONER, [{"of_lease": one.lease.lease_id, "new_due": one.due_at} for one in sooner])


def due(connection: Connection, now: datetime, limit: int) -> list[WantedAudit]:
    """What is to be done now, the oldest first."""
    query = select(audits).where(_IS_WANTED, audits.c.due_at <= now).order_by(audits.c.due_at).limit(limit)
    rows = list(connection.execute(query))
    of_id = stored_leases.by_id(connection, [LeaseId(row.lease_id) for row in rows])
    return [
        WantedAudit(
            lease=of_id[LeaseId(row.lease_id)],
            kind=row.kind,
            purpose=AuditPurpose(row.purpose),
            due_at=row.due_at,
            audit_id=row.audit_id,
        )
        for row in rows
    ]


def count_due(connection: Connection, now: datetime) -> int:
    """How many wait to be done."""
    query = select(func.count()).select_from(audits).where(_IS_WANTED, audits.c.due_at <= now)
    return int(connection.execute(query).scalar_one())


def finish(connection: Connection, done: DoneAudit) -> bool:
    """Write down what an audit showed; False when it is not wanted any more."""
    found = json.dumps([asdict(replay) for replay in done.replays])
    moved = connection.execute(
        update(audits)
        .where(audits.c.audit_id == done.audit_id, audits.c.state == AuditState.WANTED)
        .values(state=AuditState.DONE, done_at=done.done_at, zone=done.zone, found=found)
    )
    return moved.rowcount == 1


def spare(connection: Connection, lease_ids: Sequence[LeaseId]) -> None:
    """What was wanted of these is not needed any more."""
    if lease_ids:
        connection.execute(_SPARE, {"wanted": list(lease_ids)})


def pass_since(connection: Connection, wanted: WantedAudit, final_after: int) -> list[int]:
    """An audit passed: count it for what the same host reported before; returns the units that are final by it."""
    earlier = (
        _IS_WANTED,
        audits.c.host_id == wanted.lease.host_id,
        audits.c.purpose == AuditPurpose.WAITED,
        audits.c.kind == wanted.kind,
        audits.c.numerics_class == wanted.lease.numerics_class,
        audits.c.reported_at < wanted.lease.reported_at,
    )
    connection.execute(update(audits).where(*earlier).values(passed_since=audits.c.passed_since + 1))
    final = (*earlier, audits.c.passed_since >= final_after)
    unit_ids = list(connection.execute(select(audits.c.unit_id).where(*final)).scalars())
    if unit_ids:
        connection.execute(update(audits).where(*final).values(state=AuditState.SPARED))
    return unit_ids


def provisional_of(connection: Connection, host_id: HostId) -> list[int]:
    """The units whose provisional result is this host's."""
    query = (
        select(audits.c.unit_id)
        .join(units, units.c.unit_id == audits.c.unit_id)
        .where(
            _IS_WANTED,
            audits.c.host_id == host_id,
            audits.c.purpose == AuditPurpose.WAITED,
            units.c.state == UnitState.PROVISIONAL,
            units.c.accepted_lease_id == audits.c.lease_id,
        )
    )
    return list(connection.execute(query).scalars())


def final_of(connection: Connection, host_id: HostId, kind: str, limit: int) -> list[LeaseId]:
    """The newest final results of a host that only audits stand behind."""
    query = (
        select(leases.c.lease_id)
        .join(units, units.c.accepted_lease_id == leases.c.lease_id)
        .where(
            leases.c.host_id == host_id,
            leases.c.state == LeaseState.AGREED,
            units.c.state == UnitState.ACCEPTED,
            units.c.kind == kind,
            units.c.min_replicas == 1,
        )
        .order_by(leases.c.reported_at.desc())
        .limit(limit)
    )
    return [LeaseId(lease_id) for lease_id in connection.execute(query).scalars()]


def hurry(connection: Connection, now: datetime) -> int:
    """Have done now what waits for later work of its hosts; returns how much that is."""
    waiting = (_IS_WANTED, audits.c.purpose == AuditPurpose.WAITED, audits.c.due_at > now)
    return connection.execute(update(audits).where(*waiting).values(due_at=now)).rowcount


def is_waiting(connection: Connection, now: datetime) -> bool:
    """Whether a provisional result waits for later work of its host."""
    query = select(audits.c.audit_id).where(_IS_WANTED, audits.c.due_at > now).limit(1)
    return connection.execute(query).scalar() is not None


def draws_used(connection: Connection, lease_id: LeaseId) -> int:
    """How many draws the audits of a result have used: the next one looks elsewhere."""
    query = select(audits.c.found).where(audits.c.lease_id == lease_id, audits.c.state == AuditState.DONE)
    drawn = [replay["draw"] for found in connection.execute(query).scalars() for replay in json.loads(found)]
    return max(drawn, default=-1) + 1


def of_leases(connection: Connection, lease_ids: Iterable[LeaseId]) -> dict[LeaseId, list[DoneAudit]]:
    """What was found of each, in order."""
    wanted = list(lease_ids)
    query = select(audits).where(audits.c.lease_id.in_(wanted), audits.c.state == AuditState.DONE)
    grouped: dict[LeaseId, list[DoneAudit]] = {lease_id: [] for lease_id in wanted}
    for row in connection.execute(query.order_by(audits.c.audit_id)):
        grouped[LeaseId(row.lease_id)].append(_done(row))
    return grouped


def class_record(connection: Connection, kind: str, numerics_class: str, since: datetime) -> ClassRecord:
    """How the audits of one numerics class went lately."""
    of_class = select(audits.c.zone, audits.c.host_id).where(
        audits.c.numerics_class == numerics_class, audits.c.done_at >= since, audits.c.kind == kind
    )
    found = [(row.zone, row.host_id) for row in connection.execute(of_class)]
    failed = [host_id for zone, host_id in found if zone == Zone.FAULT]
    hosts = {host_id for _, host_id in found}
    return ClassRecord(audits=len(found), failed=len(failed), hosts=len(hosts), hosts_failed=len(set(failed)))


# Written out, not bound: a partial index serves only a condition that the planner can see.
_IS_WANTED = text("audits.state = 'wanted'")
_WANT = insert(audits)
_SOONER = (
    update(audits)
    .where(audits.c.lease_id == bindparam("of_lease"), _IS_WANTED, audits.c.due_at > bindparam("new_due"))
    .values(due_at=bindparam("new_due"))
)
_SPARE = (
    update(audits)
    .where(audits.c.lease_id.in_(bindparam("wanted", expanding=True)), _IS_WANTED)
    .values(state=AuditState.SPARED)
)


def _to_row(audit: WantedAudit) -> dict[str, Any]:
    return {
        "lease_id": audit.lease.lease_id,
        "unit_id": audit.lease.unit_id,
        "host_id": audit.lease.host_id,
        "kind": audit.kind,
        "numerics_class": audit.lease.numerics_class,
        "purpose": audit.purpose,
        "state": AuditState.WANTED,
        "reported_at": audit.lease.reported_at,
        "due_at": audit.due_at,
        "passed_since": 0,
        "zone": "",
        "found": "[]",
    }


def _done(row: Any) -> DoneAudit:
    return DoneAudit(
        audit_id=row.audit_id,
        lease_id=LeaseId(row.lease_id),
        host_id=HostId(row.host_id),
        purpose=AuditPurpose(row.purpose),
        done_at=row.done_at,
        zone=Zone(row.zone),
        replays=tuple(_replay(entry) for entry in json.loads(row.found)),
    )


def _replay(entry: dict[str, Any]) -> Replay:
    return Replay(**{**entry, "zone": Zone(entry["zone"]), "look": Look(entry["look"])})
