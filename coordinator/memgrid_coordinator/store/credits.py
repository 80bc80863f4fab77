"""The ledger of credit: lines are added, never changed; a wrong one is taken back by another. Totals are sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, exists, func, insert, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite

from memgrid.units import AccountId, LeaseId
from memgrid_coordinator.lifecycle import LeaseState
from memgrid_coordinator.records import Lease
from memgrid_coordinator.store.tables import accounts, credit_days, credits, leases, units

EVER = 0
"""The day that stands for all of them."""
LOW_BITS = 32
"""FLOPs are summed in two parts, for 64 bits hold less than some grids give in a day."""
_LOW = (1 << LOW_BITS) - 1


class Entry(StrEnum):
    """What a line says: a lease has one of each at the most."""

    EARNED = "earned"
    REVERSED = "reversed"


def grant(connection: Connection, earned: Sequence[tuple[Lease, int]], now: datetime) -> None:
    """One line for each lease and the FLOPs of its unit; the table refuses a second one for the same lease.

    It counts for the team that the account is in at this moment.
    """
    if not earned:
        return
    wanted = sorted({lease.account_id for lease, _ in earned})
    team_of = {row.account_id: row.team_id for row in connection.execute(_TEAMS, {"wanted": wanted})}
    lines = [
        {
            "lease_id": lease.lease_id,
            "entry": Entry.EARNED,
            "account_id": lease.account_id,
            "host_id": lease.host_id,
            "unit_id": lease.unit_id,
            "flops": flops,
            "granted_at": now,
            "team_id": team_of[lease.account_id],
        }
        for lease, flops in earned
    ]
    connection.execute(_ADD, lines)
    _sum_up(connection, [(now, line) for line in lines], sign=1)


def reverse(connection: Connection, lease_ids: Iterable[LeaseId], now: datetime) -> int:
    """Take back what these leases earned, because their results turned out wrong; returns the FLOPs taken back.

    Leases that earned nothing, or whose credit was taken back before, are passed over: it may be called twice.
    """
    standing = select(credits).where(credits.c.lease_id.in_(list(lease_ids)), is_standing())
    found = [row._asdict() for row in connection.execute(standing)]
    if not found:
        return 0
    changed = {"entry": Entry.REVERSED, "granted_at": now}
    lines = [{**line, **changed, "flops": -line["flops"]} for line in found]
    for line in lines:
        del line["credit_id"]
    connection.execute(_ADD, lines)
    # The day it was credited gives it back: no later day becomes less than nothing.
    days = [(line["granted_at"], back) for line, back in zip(found, lines, strict=True)]
    _sum_up(connection, days, sign=-1)
    return sum(int(line["flops"]) for line in found)


def total(connection: Connection, account_id: AccountId) -> int:
    """FLOPs credited to an account so far, less those taken back."""
    return _ever(connection, account_id)[0]


def results(connection: Connection, account_id: AccountId) -> int:
    """How many results an account has credit for."""
    return _ever(connection, account_id)[1]


def in_escrow(
    connection: Connection, account_id: AccountId, unit_state: str, kinds: Sequence[str]
) -> tuple[int, int]:
    """FLOPs and results of an account that will be credited once their units are final.

    `unit_state` is the state of units that wait for that, `kinds` are all there are: they open the index of units.
    """
    sums = (*parts(units.c.flops), func.count())
    waiting = units.c.kind.in_(list(kinds)) & (units.c.state == unit_state)
    counting = leases.c.state.in_([LeaseState.REPORTED, LeaseState.AGREED])
    query = select(*sums).join(units, units.c.unit_id == leases.c.unit_id).where(waiting, counting)
    high, low, found = connection.execute(query.where(leases.c.account_id == account_id)).one()
    return whole(high, low), int(found)


def parts(flops: ColumnElement[int]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """The sum of a column in two parts; neither leaves 64 bits before there are two thousand million rows."""
    high = func.sum(flops.bitwise_rshift(literal_column(str(LOW_BITS))))
    low = func.sum(flops.bitwise_and(literal_column(str(_LOW))))
    return func.coalesce(high, 0), func.coalesce(low, 0)


def is_standing() -> ColumnElement[bool]:
    """The lines that earned and were not taken back."""
    back = credits.alias()
    # Asked for each line by its key: a list of all that were taken back would be made by reading the ledger whole.
    is_back = exists().where(back.c.lease_id == credits.c.lease_id, back.c.entry == Entry.REVERSED)
    return (credits.c.entry == Entry.EARNED) & ~is_back


def whole(high: int, low: int) -> int:
    """A sum from its two parts.

    >>> whole(1, 5) == 2**32 + 5
    True
    """
    return (int(high) << LOW_BITS) + int(low)


def _ever(connection: Connection, account_id: AccountId) -> tuple[int, int]:
    sums = [func.coalesce(func.sum(column), 0) for column in (_C.flops_high, _C.flops_low, _C.results)]
    query = select(*sums).where(_C.day == EVER, _C.account_id == account_id)
    high, low, found = connection.execute(query).one()
    return whole(high, low), int(found)


def _sum_up(connection: Connection, lines: Sequence[tuple[datetime, dict[str, Any]]], *, sign: int) -> None:
    """Add lines to the sums of their days and of all time, in one statement."""
    sums: dict[tuple[int, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for credited_at, line in lines:
        for day in (credited_at.toordinal(), EVER):
            found = sums[day, line["account_id"], line["team_id"] or ""]
            found[0] += sign
            found[1] += sign * (abs(line["flops"]) >> LOW_BITS)
            found[2] += sign * (abs(line["flops"]) & _LOW)
    rows = [
        {
            "day": day,
            "account_id": account_id,
            "team_id": team_id,
            "results": found[0],
            "flops_high": found[1],
            "flops_low": found[2],
        }
        for (day, account_id, team_id), found in sums.items()
    ]
    connection.execute(_ADD_UP[connection.dialect.name], rows)


def _add_up(dialect: Any) -> Any:
    adding = dialect.insert(credit_days)
    more = {name: _C[name] + adding.excluded[name] for name in ("results", "flops_high", "flops_low")}
    return adding.on_conflict_do_update(index_elements=["day", "account_id", "team_id"], set_=more)


_C = credit_days.c
# Built once: building a statement costs more than running it.
_ADD = insert(credits)
_TEAMS = select(accounts.c.account_id, accounts.c.team_id).where(
    accounts.c.account_id.in_(bindparam("wanted", expanding=True))
)
_ADD_UP = {"sqlite": _add_up(sqlite), "postgresql": _add_up(postgresql)}
