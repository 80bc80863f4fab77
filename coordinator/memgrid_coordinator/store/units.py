"""Work units: creating them once, opening them, and every move of their state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from memgrid.digest import Digest
from memgrid.specs import PrefillSpec
from memgrid.units import NO_WISHES, LeaseId, Reason, ReasonCode, UnitKey, Wishes
from memgrid_coordinator.lifecycle import ENDED_UNITS, HAVE_RESULTS, LEASE_MOVES, UNIT_MOVES, LeaseState, UnitState
from memgrid_coordinator.records import Demand, Host, Lease, NewUnit, Unit
from memgrid_coordinator.store.events import reason_from
from memgrid_coordinator.store.tables import leases, units
from memgrid_coordinator.store.wishes import wished


def by_key(connection: Connection, keys: Sequence[UnitKey]) -> dict[UnitKey, Unit]:
    """The units of those keys that exist."""
    found: dict[UnitKey, Unit] = {}
    for start in range(0, len(keys), 500):
        query = select(units).where(units.c.key.in_(keys[start : start + 500]))
        found |= {UnitKey(row.key): _unit(row) for row in connection.execute(query)}
    return found


def by_id(connection: Connection, unit_ids: Iterable[int]) -> dict[int, Unit]:
    wanted = list(unit_ids)
    if not wanted:
        return {}
    return {row.unit_id: _unit(row) for row in connection.execute(_BY_ID, {"wanted": wanted})}


def ids_by_key(connection: Connection, keys: Sequence[UnitKey]) -> dict[UnitKey, int]:
    """The same without their content, which is what most of a unit is."""
    found: dict[UnitKey, int] = {}
    for start in range(0, len(keys), 500):
        query = select(units.c.key, units.c.unit_id).where(units.c.key.in_(keys[start : start + 500]))
        found |= {UnitKey(row.key): row.unit_id for row in connection.execute(query)}
    return found


def add(connection: Connection, new: Sequence[NewUnit], demand: Demand) -> None:
    """Create units as waiting; parents come before their children."""
    alike = {
        "new_priority": demand.priority,
        "new_min": demand.min_replicas,
        "new_max": demand.max_replicas,
        "new_epsilon": demand.epsilon,
        "new_f_bar": demand.f_bar,
    }
    rows = [
        {
            "new_key": unit.key,
            "new_kind": unit.kind,
            "new_spec": unit.spec,
            "new_model": unit.model,
            "new_tokens": unit.token_count,
            "new_flops": unit.flops,
            "parent_key": unit.parent,
            **alike,
        }
        for unit in new
    ]
    if rows:
        connection.execute(_ADD, rows)


def demand_more(connection: Connection, unit_ids: Sequence[int], demand: Demand) -> None:
    """A further campaign wants these units: the greater priority and the stricter checking win while they run."""
    running = units.c.unit_id.in_(list(unit_ids)) & units.c.state.in_([UnitState.WAITING, UnitState.OPEN])
    stricter: list[tuple[Any, dict[str, Any]]] = [
        (units.c.priority < demand.priority, {"priority": demand.priority}),
        (
            units.c.min_replicas < demand.min_replicas,
            {
                "min_replicas": demand.min_replicas,
                "vacancies": units.c.vacancies + (demand.min_replicas - units.c.min_replicas),
            },
        ),
    ]
    if demand.epsilon is not None:
        is_laxer = units.c.epsilon.is_(None) | (units.c.epsilon > demand.epsilon)
        stricter.append((is_laxer, {"epsilon": demand.epsilon}))
    if demand.f_bar is not None:
        is_laxer = units.c.f_bar.is_(None) | (units.c.f_bar < demand.f_bar)
        stricter.append((is_laxer, {"f_bar": demand.f_bar}))
    for is_laxer, values in stricter:
        connection.execute(update(units).where(running, is_laxer).values(**values))


def revive(connection: Connection, unit_ids: Sequence[int]) -> None:
    """Give failed and cancelled units another chance, because somebody wants them again; who was credited for a
    report on them may take part again."""
    sources, target = UNIT_MOVES["revive"]
    lost = units.c.unit_id.in_(list(unit_ids)) & units.c.state.in_(list(sources))
    _let_go(connection, lost)
    connection.execute(
        update(units)
        .where(lost)
        .values(state=target, vacancies=0, failures=0, settled_at=None, reason_code=None, reason_text="")
    )


def take_up_again(connection: Connection, unit_ids: Sequence[int]) -> None:
    """Have accepted units whose result is gone computed anew; who agreed before was paid, and may take part again."""
    sources, target = UNIT_MOVES["take_up"]
    these = units.c.unit_id.in_(list(unit_ids))
    lost = these & units.c.state.in_(list(sources)) & units.c.output_digest.is_(None)
    _let_go(connection, lost)
    fresh = {"vacancies": 0, "failures": 0, "output_bytes": 0, "accepted_lease_id": None, "settled_at": None}
    connection.execute(update(units).where(lost).values(state=target, **fresh))


def _let_go(connection: Connection, lost: ColumnElement[bool]) -> None:
    """Leases that agreed stop to count for these units; their reason stays, and with it that they were paid."""
    agreed, ended = LEASE_MOVES["cancel"][0] & {LeaseState.AGREED}, LEASE_MOVES["cancel"][1]
    of_lost = leases.c.unit_id.in_(select(units.c.unit_id).where(lost))
    connection.execute(update(leases).where(of_lost, leases.c.state.in_(list(agreed))).values(state=ended))


def release(connection: Connection, unit_ids: Sequence[int]) -> None:
    """A running campaign wants these: they are on hold no more."""
    connection.execute(
        update(units).where(units.c.unit_id.in_(list(unit_ids)), units.c.on_hold).values(on_hold=False)
    )


def openable(connection: Connection, unit_ids: Sequence[int]) -> list[int]:
    """Of these, the waiting units that need no parent, or whose parent has its result."""
    parent = units.alias()
    ready = exists().where(parent.c.unit_id == units.c.parent_id, parent.c.state.in_(sorted(HAVE_RESULTS)))
    query = select(units.c.unit_id).where(
        units.c.unit_id.in_(unit_ids),
        units.c.state == UnitState.WAITING,
        units.c.parent_id.is_(None) | ready,
    )
    return list(connection.execute(query).scalars())


def children(connection: Connection, unit_ids: Sequence[int]) -> list[int]:
    """The units that continue one of these."""
    return list(connection.execute(select(units.c.unit_id).where(units.c.parent_id.in_(unit_ids))).scalars())


def open_units(connection: Connection, unit_ids: Sequence[int], now: datetime) -> int:
    """Let hosts have these; returns how many were waiting."""
    moved = connection.execute(
        update(units)
        .where(units.c.unit_id.in_(unit_ids), units.c.state == UnitState.WAITING)
        .values(state=UnitState.OPEN, vacancies=units.c.min_replicas, opened_at=now)
    )
    return moved.rowcount


def lease_candidates(
    connection: Connection, host: Host, limit: int, now: datetime, wishes: Wishes = NO_WISHES
) -> list[Unit]:
    """Open units with a vacancy that the host's account and network have no part in, most urgent and oldest first.

    One account is one voice, and so is one network, so neither gets a second lease beside one that counts or was
    rejected. What ran out or was given back it may try again; a unit that failed on it only after a while, so that
    others come first and yet a unit that failed everywhere is not stuck.
    """
    query = _CANDIDATES.where(*wished(wishes, host.flops_per_s)) if wishes.are_picky else _CANDIDATES
    return [
        _unit(row)
        for row in connection.execute(
            query,
            {
                "account": host.account_id,
                "network": host.network,
                "most": limit,
                "failed_since": now - RETRY_AFTER,
            },
        )
    ]


def canary_for(connection: Connection, host: Host, share: float, now: datetime) -> list[Unit]:
    """A unit whose result is known and that the host has no part in, `share` of the way through all; or none.

    For the host it is a unit like any other; its report is judged by the result that there is.
    """
    begin = int(share * count_about(connection))
    given = {
        "account": host.account_id,
        "network": host.network,
        "failed_since": now - RETRY_AFTER,
        "begin": begin,
    }
    return [_unit(row) for row in connection.execute(_CANARY, given)]


def count_about(connection: Connection) -> int:
    """How many units there are, at most."""
    return int(connection.execute(_NEWEST).scalar() or 0)


def advance_fences(connection: Connection, unit_ids: Sequence[int]) -> None:
    """The next fence, for units that are leased without a vacancy."""
    if unit_ids:
        connection.execute(_ADVANCE_FENCE, [{"taken": unit_id} for unit_id in unit_ids])


def with_vacancies(connection: Connection, unit_ids: Iterable[int]) -> dict[int, Unit]:
    """Of these units, those that want another host."""
    query = select(units).where(units.c.unit_id.in_(list(unit_ids)), _HAS_VACANCY)
    return {row.unit_id: _unit(row) for row in connection.execute(query)}


def has_vacancies(connection: Connection) -> bool:
    return connection.execute(_ANY_VACANCY).scalar() is not None


def take_vacancies(connection: Connection, unit_ids: Sequence[int]) -> None:
    """One vacancy fewer and the next fence, for each."""
    if unit_ids:
        connection.execute(_TAKE_VACANCY, [{"taken": unit_id} for unit_id in unit_ids])


def move(connection: Connection, unit_ids: Sequence[int], verb: str, now: datetime) -> int:
    """The guarded move of some units; returns how many were in a state that it starts from."""
    target = UNIT_MOVES[verb][1]
    given = {"wanted": list(unit_ids), "new_time": now if target in ENDED_UNITS else None}
    return connection.execute(_MOVES[verb], given).rowcount


def give_reasons(connection: Connection, reasons: dict[int, Reason | None]) -> None:
    """Keep why units ended without a result."""
    rows = [
        {"ended": unit_id, "new_code": reason.code.value, "new_text": reason.text}
        for unit_id, reason in reasons.items()
        if reason is not None
    ]
    if rows:
        connection.execute(_GIVE_REASON, rows)


def set_vacancies(connection: Connection, vacancies: dict[int, int]) -> None:
    if vacancies:
        rows = [{"wanted": unit_id, "count": count} for unit_id, count in vacancies.items()]
        connection.execute(_SET_VACANCIES, rows)


def count_failures(connection: Connection, unit_ids: Sequence[int]) -> None:
    """One more lease of each of these came to nothing."""
    if unit_ids:
        connection.execute(_COUNT_FAILURE, [{"failed": unit_id} for unit_id in unit_ids])


def set_results(connection: Connection, results: Sequence[Lease]) -> None:
    """Which replica became the result of its unit."""
    rows = [
        {
            "settled": lease.unit_id,
            "chosen": lease.lease_id,
            "digest": lease.outputs[0].digest,
            "size_bytes": lease.outputs[0].size_bytes,
        }
        for lease in results
    ]
    connection.execute(_SET_RESULT, rows)


def forget_results(connection: Connection, unit_ids: Sequence[int]) -> None:
    """These have no result any more."""
    forgotten = {"accepted_lease_id": None, "output_digest": None, "output_bytes": 0}
    connection.execute(update(units).where(units.c.unit_id.in_(list(unit_ids))).values(**forgotten))


def want_replicas(connection: Connection, unit_ids: Sequence[int], replicas: int) -> None:
    """So many accounts, at least, have to agree on these."""
    fewer = units.c.unit_id.in_(list(unit_ids)) & (units.c.min_replicas < replicas)
    enough = 2 * replicas - 1  # for a majority of so many, should they disagree
    larger = case((units.c.max_replicas > enough, units.c.max_replicas), else_=enough)
    connection.execute(update(units).where(fewer).values(min_replicas=replicas, max_replicas=larger))


def descendants(connection: Connection, unit_ids: Sequence[int]) -> list[int]:
    """All units that continue one of these, directly or not, parents before their children."""
    begun = select(units.c.unit_id, literal(1).label("depth")).where(units.c.parent_id.in_(list(unit_ids)))
    below = begun.cte("below", recursive=True)
    below = below.union_all(
        select(units.c.unit_id, below.c.depth + 1).join(below, units.c.parent_id == below.c.unit_id)
    )
    return list(connection.execute(select(below.c.unit_id).order_by(below.c.depth)).scalars())


def ancestors(connection: Connection, unit_id: int) -> list[Unit]:
    """The accepted chain that a unit continues, first chunk first."""
    chain = (
        select(units.c.parent_id.label("unit_id"), literal(1).label("depth"))
        .where(units.c.unit_id == unit_id, units.c.parent_id.is_not(None))
        .cte("chain", recursive=True)
    )
    chain = chain.union_all(
        select(units.c.parent_id, chain.c.depth + 1)
        .join(chain, units.c.unit_id == chain.c.unit_id)
        .where(units.c.parent_id.is_not(None))
    )
    query = select(units).join(chain, units.c.unit_id == chain.c.unit_id).order_by(chain.c.depth.desc())
    return [_unit(row) for row in connection.execute(query)]


def undecided(connection: Connection, limit: int) -> list[int]:
    """Open units that nobody is working on or could be: their reports still have to be compared."""
    working = exists().where(leases.c.unit_id == units.c.unit_id, leases.c.state == LeaseState.LEASED)
    query = select(units.c.unit_id).where(text("units.state = 'open' AND units.vacancies = 0"), ~working).limit(limit)
    return list(connection.execute(query).scalars())


def oldest_opening(connection: Connection) -> datetime | None:
    """Since when the oldest open unit with a vacancy has been waiting."""
    query = select(func.min(units.c.opened_at)).where(_HAS_VACANCY)
    opened_at: datetime | None = connection.execute(query).scalar()
    return opened_at


def count_by_state(connection: Connection) -> dict[str, int]:
    query = select(units.c.state, func.count()).group_by(units.c.state)
    return {row[0]: row[1] for row in connection.execute(query)}


def beginning_with(connection: Connection, prefix: str) -> list[Unit]:
    """Units whose key starts so, two at the most."""
    query = select(units).where(units.c.key.startswith(prefix, autoescape=True)).limit(2)
    return [_unit(row) for row in connection.execute(query)]


RETRY_AFTER = timedelta(minutes=10)
"""How long a unit that failed on an account is kept for others."""

# The statements of the hot path are built once: building one costs more than running it.
_PARENT = units.alias("parent")
_ADD = insert(units).values(
    key=bindparam("new_key"),
    kind=bindparam("new_kind"),
    state=UnitState.WAITING,
    spec=bindparam("new_spec"),
    model=bindparam("new_model"),
    tokens_digest="",
    token_count=bindparam("new_tokens"),
    flops=bindparam("new_flops"),
    priority=bindparam("new_priority"),
    min_replicas=bindparam("new_min"),
    max_replicas=bindparam("new_max"),
    # Looked up as each row is written: the parent may be one of the rows before it.
    parent_id=select(_PARENT.c.unit_id)
    .where(_PARENT.c.key == bindparam("parent_key", type_=String))
    .scalar_subquery(),
    vacancies=0,
    fence=0,
    failures=0,
    output_bytes=0,
    reason_text="",
    on_hold=False,
    epsilon=bindparam("new_epsilon"),
    f_bar=bindparam("new_f_bar"),
)
_BY_ID = select(units).where(units.c.unit_id.in_(bindparam("wanted", expanding=True)))
_FAILED_THERE = (
    ReasonCode.UNIT_FAILED,
    ReasonCode.OUT_OF_MEMORY,
    ReasonCode.DIVERGED,
    ReasonCode.VOCABULARY_MISMATCH,
    ReasonCode.HELD_OUT_LEAKED,
)
_IS_THEIRS = (leases.c.account_id == bindparam("account")) | (
    (leases.c.network == bindparam("network")) & (leases.c.network != "")
)
_HAS_PART = exists().where(
    leases.c.unit_id == units.c.unit_id,
    _IS_THEIRS,
    leases.c.state.in_([LeaseState.LEASED, LeaseState.REPORTED, LeaseState.AGREED, LeaseState.REJECTED])
    | (
        (leases.c.state == LeaseState.RELEASED)
        & leases.c.reason_code.in_(_FAILED_THERE)
        & (leases.c.granted_at > bindparam("failed_since"))
    ),
)
# Written out, not bound: a partial index serves only a condition that the planner can see.
_HAS_VACANCY = text("units.state = 'open' AND units.vacancies > 0 AND NOT units.on_hold")
_CANDIDATES = (
    select(units)
    .where(_HAS_VACANCY, ~_HAS_PART)
    .order_by(units.c.priority.desc(), units.c.unit_id)
    .limit(bindparam("most"))
)
_CANARY = (
    select(units)
    .where(
        units.c.unit_id > bindparam("begin"),
        units.c.state == UnitState.ACCEPTED,
        units.c.kind == PrefillSpec.kind,
        units.c.output_digest.is_not(None),
        ~_HAS_PART,
    )
    .order_by(units.c.unit_id)
    .limit(1)
)
_NEWEST = select(func.max(units.c.unit_id))
_ADVANCE_FENCE = update(units).where(units.c.unit_id == bindparam("taken")).values(fence=units.c.fence + 1)
_ANY_VACANCY = select(units.c.unit_id).where(_HAS_VACANCY).limit(1)
_MOVES = {
    verb: update(units)
    .where(units.c.unit_id.in_(bindparam("wanted", expanding=True)), units.c.state.in_(sorted(sources)))
    .values(state=target, vacancies=0, settled_at=bindparam("new_time"))
    for verb, (sources, target) in UNIT_MOVES.items()
}
_TAKE_VACANCY = (
    update(units)
    .where(units.c.unit_id == bindparam("taken"))
    .values(vacancies=units.c.vacancies - 1, fence=units.c.fence + 1)
)
_SET_VACANCIES = (
    update(units)
    .where(units.c.unit_id == bindparam("wanted"), units.c.state == UnitState.OPEN)
    .values(vacancies=bindparam("count"))
)
_SET_RESULT = (
    update(units)
    .where(units.c.unit_id == bindparam("settled"))
    .values(
        accepted_lease_id=bindparam("chosen"),
        output_digest=bindparam("digest"),
        output_bytes=bindparam("size_bytes"),
    )
)
_GIVE_REASON = (
    update(units)
    .where(units.c.unit_id == bindparam("ended"))
    .values(reason_code=bindparam("new_code"), reason_text=bindparam("new_text"))
)
_COUNT_FAILURE = update(units).where(units.c.unit_id == bindparam("failed")).values(failures=units.c.failures + 1)


def _unit(row: Any) -> Unit:
    return Unit(
        unit_id=row.unit_id,
        key=UnitKey(row.key),
        kind=row.kind,
        state=UnitState(row.state),
        spec=row.spec,
        model=Digest(row.model),
        token_count=row.token_count,
        flops=row.flops,
        priority=row.priority,
        min_replicas=row.min_replicas,
        max_replicas=row.max_replicas,
        parent_id=row.parent_id,
        fence=row.fence,
        failures=row.failures,
        output_digest=None if row.output_digest is None else Digest(row.output_digest),
        output_bytes=row.output_bytes,
        accepted_lease_id=None if row.accepted_lease_id is None else LeaseId(row.accepted_lease_id),
        opened_at=row.opened_at,
        settled_at=row.settled_at,
        reason=reason_from(row.reason_code, row.reason_text),
        epsilon=row.epsilon,
        f_bar=row.f_bar,
    )
