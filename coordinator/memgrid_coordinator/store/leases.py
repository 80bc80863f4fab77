"""Leases and the reports that answer them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, exists, func, insert, or_, select, text, update

from memgrid.digest import Digest
from memgrid.kinds.part import Part
from memgrid.units import AccountId, ComputeDtype, HostId, LeaseId, Output, Reason, ReportClaim, UnitKey, WorkFacts
from memgrid_coordinator.lifecycle import ENDED_UNITS, LEASE_MOVES, LeaseState, UnitState
from memgrid_coordinator.policy.tails import Running
from memgrid_coordinator.records import Host, Lease
from memgrid_coordinator.store.events import reason_from
from memgrid_coordinator.store.tables import hosts, leases, statements, units


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A lease whose end its host has not heard of."""

    lease_id: LeaseId
    state: LeaseState
    reason: Reason | None
    unit_state: UnitState
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningUnit:
    """A unit that somebody computes now."""

    unit_id: int
    running: Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A report that was taken: with its sketch, what it took, and whether it was drawn for an audit."""

    claim: ReportClaim
    sketch: bytes
    compute_s: float
    is_drawn: bool


def grant(connection: Connection, granted: Sequence[Lease]) -> None:
    """Write new leases in one statement."""
    connection.execute(
        _GRANT,
        [
            {
                "lease_id": lease.lease_id,
                "unit_id": lease.unit_id,
                "host_id": lease.host_id,
                "account_id": lease.account_id,
                "fence": lease.fence,
                "state": lease.state,
                "granted_at": lease.granted_at,
                "deadline_at": lease.deadline_at,
                "outputs": NO_OUTPUTS,
                "sketch": b"",
                "facts": "",
                "compute_s": 0.0,
                "reason_text": "",
                "is_drawn": False,
                "network": lease.network,
            }
            for lease in granted
        ],
    )


def by_id(connection: Connection, lease_ids: Iterable[LeaseId]) -> dict[LeaseId, Lease]:
    wanted = list(lease_ids)
    if not wanted:
        return {}
    return {LeaseId(row.lease_id): _lease(row) for row in connection.execute(_BY_ID, {"wanted": wanted})}


def of_units(connection: Connection, unit_ids: Iterable[int]) -> dict[int, list[Lease]]:
    """All leases those units ever had, by unit, oldest fence first."""
    grouped: dict[int, list[Lease]] = {unit_id: [] for unit_id in unit_ids}
    if grouped:
        for row in connection.execute(_OF_UNITS, {"wanted": list(grouped)}):
            grouped[row.unit_id].append(_lease(row))
    return grouped


def held_by(connection: Connection, host_id: HostId) -> list[Lease]:
    """What the host should be working on."""
    return [_lease(row) for row in connection.execute(_HELD_BY, {"host": host_id})]


def count_held(connection: Connection, account_id: AccountId) -> int:
    """What all hosts of an account hold together."""
    return int(connection.execute(_COUNT_HELD, {"account": account_id}).scalar_one())


def running(connection: Connection, host: Host, now: datetime, *, slack: float) -> list[RunningUnit]:
    """Units that others compute and this host may compute too, those that will be overdue first.

    How long a lease should take follows from how long it was given, which is `slack` times that.
    """
    given = {"account": host.account_id, "network": host.network}
    return [
        RunningUnit(
            unit_id=row.unit_id,
            running=Running(
                unit_key=UnitKey(row.key),
                flops=row.flops,
                elapsed_s=(now - row.granted_at).total_seconds(),
                estimate_s=(row.deadline_at - row.granted_at).total_seconds() / slack,
                silent_s=(now - row.seen_at).total_seconds(),
                copies=row.copies,
            ),
        )
        for row in connection.execute(_RUNNING, given)
    ]


def due(connection: Connection, now: datetime, limit: int) -> list[Lease]:
    """Leases whose deadline has passed."""
    query = text("leases.state = 'leased'") & (leases.c.deadline_at <= now)
    return _select(connection, query, limit=limit)


def unjudged(connection: Connection, limit: int) -> list[int]:
    """Units that ended, with a report that nobody has judged: what a crash left between the two."""
    query = (
        select(leases.c.unit_id)
        .join(units, units.c.unit_id == leases.c.unit_id)
        .where(text("leases.state = 'reported'"), units.c.state.in_(sorted(ENDED_UNITS)))
        .distinct()
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def count_by_state(connection: Connection) -> dict[str, int]:
    query = select(leases.c.state, func.count()).group_by(leases.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def beginning_with(connection: Connection, prefix: str) -> list[Lease]:
    """Leases whose id starts so, two at the most."""
    return _select(connection, leases.c.lease_id.startswith(prefix, autoescape=True), limit=2)


def settled(connection: Connection, host_id: HostId, awaiting: Sequence[LeaseId]) -> list[Settled]:
    """Of the reports a host awaits, those that need no more waiting."""
    return [
        Settled(
            lease_id=LeaseId(row.lease_id),
            state=LeaseState(row.state),
            reason=reason_from(row.reason_code, row.reason_text),
            unit_state=UnitState(row.unit_state),
            flops=row.flops,
        )
        for row in connection.execute(_SETTLED, {"awaiting": list(awaiting), "host": host_id})
    ]


def report(
    connection: Connection,
    reported: Sequence[Reported],
    *,
    statement_id: int,
    now: datetime,
) -> None:
    """Write reports; the leases were seen to be reportable in this step."""
    rows = [
        {
            "reported": one.claim.lease_id,
            "new_outputs": _outputs_to_json(one.claim.outputs),
            "new_sketch": one.sketch,
            "new_facts": _facts_to_json(one.claim.facts),
            "new_seconds": one.compute_s,
            "new_statement": statement_id,
            "new_time": now,
            "new_drawn": one.is_drawn,
        }
        for one in reported
    ]
    connection.execute(_REPORT, rows)


def dispute(connection: Connection, parts: Mapping[LeaseId, Part]) -> None:
    """These differ in this piece each: their audits look there, and nothing of them counts before."""
    if parts:
        rows = [
            {"reported": lease_id, "new_part": json.dumps([part.pieces, part.layer])}
            for lease_id, part in parts.items()
        ]
        connection.execute(_DISPUTE, rows)


def add_statement(connection: Connection, host_id: HostId, body: bytes, signature: bytes, now: datetime) -> int:
    """Keep what a host signed, as it signed it."""
    given = {"host_id": host_id, "body": body, "signature": signature, "received_at": now}
    row = connection.execute(_ADD_STATEMENT, given)
    assert row.inserted_primary_key is not None
    statement_id: int = row.inserted_primary_key[0]
    return statement_id


def move(connection: Connection, lease_ids: Sequence[LeaseId], verb: str, reason: Reason | None) -> int:
    """The guarded move of some leases, for one reason; returns how many moved."""
    given = {
        "wanted": list(lease_ids),
        "new_code": None if reason is None else reason.code.value,
        "new_text": "" if reason is None else reason.text,
    }
    return connection.execute(_MOVES[verb], given).rowcount


# The statements of the hot path are built once: building one costs more than running it.
_WITH_KEY = select(leases, units.c.key).join(units, units.c.unit_id == leases.c.unit_id)
_BY_ID = _WITH_KEY.where(leases.c.lease_id.in_(bindparam("wanted", expanding=True)))
_OF_UNITS = _WITH_KEY.where(leases.c.unit_id.in_(bindparam("wanted", expanding=True))).order_by(leases.c.fence)
# Written out, not bound: a partial index serves only a condition that the planner can see.
_HELD_BY = _WITH_KEY.where(leases.c.host_id == bindparam("host"), text("leases.state = 'leased'"))
_COUNT_HELD = (
    select(func.count())
    .select_from(leases)
    .join(hosts, hosts.c.host_id == leases.c.host_id)
    .where(hosts.c.account_id == bindparam("account"), text("leases.state = 'leased'"))
)
RUNNING_MAX = 256
_OTHERS = leases.alias()
_IS_THEIRS = (_OTHERS.c.account_id == bindparam("account")) | (
    (_OTHERS.c.network == bindparam("network")) & (_OTHERS.c.network != "")
)
_RUNNING = (
    select(leases.c.unit_id, leases.c.granted_at, leases.c.deadline_at, hosts.c.seen_at, units.c.key, units.c.flops)
    .add_columns(
        select(func.count())
        .where(_OTHERS.c.unit_id == leases.c.unit_id, _OTHERS.c.state == LeaseState.LEASED)
        .scalar_subquery()
        .label("copies")
    )
    .join(units, units.c.unit_id == leases.c.unit_id)
    .join(hosts, hosts.c.host_id == leases.c.host_id)
    .where(
        text("leases.state = 'leased'"),
        units.c.state == UnitState.OPEN,
        ~units.c.on_hold,
        ~exists().where(_OTHERS.c.unit_id == leases.c.unit_id, _IS_THEIRS),
    )
    .order_by(leases.c.deadline_at)
    .limit(RUNNING_MAX)
)
_SETTLED = (
    select(
        leases.c.lease_id,
        leases.c.state,
        leases.c.reason_code,
        leases.c.reason_text,
        units.c.state.label("unit_state"),
        units.c.flops,
    )
    .join(units, units.c.unit_id == leases.c.unit_id)
    .where(leases.c.lease_id.in_(bindparam("awaiting", expanding=True)), leases.c.host_id == bindparam("host"))
)
_GRANT = insert(leases)
_ADD_STATEMENT = insert(statements)
_MOVES = {
    verb: update(leases)
    .where(leases.c.lease_id.in_(bindparam("wanted", expanding=True)), leases.c.state.in_(sorted(sources)))
    .values(state=target, reason_code=bindparam("new_code"), reason_text=bindparam("new_text"))
    for verb, (sources, target) in LEASE_MOVES.items()
}
_REPORT = (
    update(leases)
    .where(
        leases.c.lease_id == bindparam("reported"),
        or_(*(leases.c.state == source for source in sorted(LEASE_MOVES["report"][0]))),
    )
    .values(
        state=LeaseState.REPORTED,
        reason_code=None,
        reason_text="",
        outputs=bindparam("new_outputs"),
        sketch=bindparam("new_sketch"),
        facts=bindparam("new_facts"),
        compute_s=bindparam("new_seconds"),
        statement_id=bindparam("new_statement"),
        reported_at=bindparam("new_time"),
        is_drawn=bindparam("new_drawn"),
    )
)


_DISPUTE = (
    update(leases)
    .where(leases.c.lease_id == bindparam("reported"))
    .values(is_drawn=True, disputed=bindparam("new_part"))
)


def _select(connection: Connection, where: Any, limit: int | None = None) -> list[Lease]:
    query = _WITH_KEY.where(where).limit(limit)
    return [_lease(row) for row in connection.execute(query)]


def _lease(row: Any) -> Lease:
    return Lease(
        lease_id=LeaseId(row.lease_id),
        unit_id=row.unit_id,
        unit_key=UnitKey(row.key),
        host_id=HostId(row.host_id),
        account_id=AccountId(row.account_id),
        fence=row.fence,
        state=LeaseState(row.state),
        granted_at=row.granted_at,
        deadline_at=row.deadline_at,
        reported_at=row.reported_at,
        outputs=_outputs_from_json(row.outputs),
        sketch=row.sketch,
        facts=_facts_from_json(row.facts),
        reason=reason_from(row.reason_code, row.reason_text),
        is_drawn=row.is_drawn,
        disputed=_part_from_json(row.disputed),
        network=row.network,
    )


def _outputs_to_json(outputs: tuple[Output, ...]) -> str:
    return json.dumps([(output.name, output.digest, output.size_bytes) for output in outputs])


def _outputs_from_json(text: str) -> tuple[Output, ...]:
    if text == NO_OUTPUTS:
        return ()
    return tuple(
        Output(name=name, digest=Digest(digest), size_bytes=size_bytes)
        for name, digest, size_bytes in json.loads(text)
    )


def _part_from_json(text: str | None) -> Part | None:
    if text is None:
        return None
    pieces, layer = json.loads(text)
    return Part(pieces=tuple(pieces), layer=layer)


def _facts_to_json(facts: WorkFacts) -> str:
    return json.dumps([getattr(facts, name) for name in _FACTS])


def _facts_from_json(text: str) -> WorkFacts | None:
    if not text:
        return None
    entry = dict(zip(_FACTS, json.loads(text), strict=True))
    return WorkFacts(**{**entry, "compute_dtype": ComputeDtype(entry["compute_dtype"])})


NO_OUTPUTS = "[]"
_FACTS = tuple(field.name for field in fields(WorkFacts))
