"""Who gave most: read from the sums by day, so that a board costs as much as it has lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, Select, cast, func, select

from memgrid.leaderboard import BoardLine
from memgrid.nickname import nickname
from memgrid.units import AccountId
from memgrid_coordinator.store.credits import EVER, LOW_BITS, whole
from memgrid_coordinator.store.tables import accounts, credit_days, hosts, teams
from memgrid_coordinator.views import BoardSums

_C = credit_days.c


def of_accounts(
    connection: Connection, *, first_day: int | None, alive_since: datetime, skip: int, limit: int
) -> tuple[BoardLine, ...]:
    """Accounts by credit, most first."""
    ranked = connection.execute(_ranked(_C.account_id, first_day).offset(skip).limit(limit)).all()
    known = _accounts(connection, [row.who for row in ranked], alive_since)
    return tuple(
        BoardLine(
            rank=rank,
            name=nickname(row.who),
            flops=float(whole(row.high, row.low)),
            results=int(row.results),
            since=known[row.who].created_at,
            team=known[row.who].team or "",
            machines=int(known[row.who].machines),
            is_computing=bool(known[row.who].is_computing),
        )
        for rank, row in enumerate(ranked, start=skip + 1)
    )


def of_teams(connection: Connection, *, first_day: int | None, skip: int, limit: int) -> tuple[BoardLine, ...]:
    """Teams by what their members earned for them, most first, wherever those members are now."""
    ranked = connection.execute(_ranked(_C.team_id, first_day).offset(skip).limit(limit)).all()
    wanted = [row.who for row in ranked]
    known = {row.team_id: row for row in connection.execute(select(teams).where(teams.c.team_id.in_(wanted)))}
    members = members_of(connection, wanted)
    return tuple(
        BoardLine(
            rank=rank,
            name=known[row.who].name,
            flops=float(whole(row.high, row.low)),
            results=int(row.results),
            since=known[row.who].founded_at,
            members=members.get(row.who, 0),
        )
        for rank, row in enumerate(ranked, start=skip + 1)
    )


def sums_of_accounts(connection: Connection, first_day: int | None) -> BoardSums:
    """How many accounts are on the board, and what they gave together."""
    return _sums(connection, _C.account_id, first_day)


def sums_of_teams(connection: Connection, first_day: int | None) -> BoardSums:
    """How many teams are on the board, and what they gave together."""
    return _sums(connection, _C.team_id, first_day)


def members_of(connection: Connection, team_ids: Sequence[str]) -> dict[str, int]:
    """How many accounts are in each of these teams now; those that were banned are not counted."""
    query = select(accounts.c.team_id, func.count()).where(
        accounts.c.team_id.in_(list(team_ids)), accounts.c.banned_at.is_(None)
    )
    return {row[0]: int(row[1]) for row in connection.execute(query.group_by(accounts.c.team_id))}


def rank_of(connection: Connection, account_id: AccountId) -> tuple[int, int]:
    """Where an account stands among all that ever earned, and how many those are; rank 0 without credit."""
    board = _ranked(_C.account_id, None).subquery()
    mine = connection.execute(select(board.c.weight).where(board.c.who == account_id)).scalar()
    ranked = int(connection.execute(select(func.count()).select_from(board)).scalar_one())
    if mine is None:
        return 0, ranked
    ahead = select(func.count()).select_from(board).where(board.c.weight > mine)
    return 1 + int(connection.execute(ahead).scalar_one()), ranked


def given_to(connection: Connection, team_id: str) -> float:
    """FLOPs that members of a team ever earned for it."""
    query = select(*_parts()).where(_C.day == EVER, _C.team_id == team_id, _is_shown())
    high, low, _ = connection.execute(query).one()
    return float(whole(high, low))


def _ranked(who: ColumnElement[str], first_day: int | None) -> Select[str, int, int, int, float]:
    """Everybody with credit, most first; of equal ones the order is arbitrary, but always the same."""
    high, low, results = _parts()
    weight = (cast(high, Float(53)) * float(1 << LOW_BITS) + cast(low, Float(53))).label("weight")
    columns = (who.label("who"), high.label("high"), low.label("low"), results.label("results"), weight)
    query = select(*columns).where(_within(first_day), _is_shown(), who != "")
    return query.group_by(who).having(results > 0).order_by(weight.desc(), who)


def _sums(connection: Connection, who: ColumnElement[str], first_day: int | None) -> BoardSums:
    board = _ranked(who, first_day).order_by(None).subquery()
    sums = [func.coalesce(func.sum(board.c[name]), 0) for name in ("high", "low", "results")]
    total, high, low, results = connection.execute(select(func.count(), *sums).select_from(board)).one()
    return BoardSums(total=int(total), flops=float(whole(high, low)), results=int(results))


def _within(first_day: int | None) -> ColumnElement[bool]:
    return _C.day == EVER if first_day is None else _C.day >= first_day


def _is_shown() -> ColumnElement[bool]:
    banned = select(accounts.c.account_id).where(accounts.c.banned_at.is_not(None))
    return _C.account_id.not_in(banned)


def _parts() -> tuple[ColumnElement[int], ColumnElement[int], ColumnElement[int]]:
    high, low, results = (func.coalesce(func.sum(_C[name]), 0) for name in ("flops_high", "flops_low", "results"))
    return high, low, results


def _accounts(connection: Connection, account_ids: Sequence[str], alive_since: datetime) -> dict[str, Any]:
    """When each of them came, its team, how many machines it has, and whether one was heard of lately."""
    query = (
        select(
            accounts.c.account_id,
            accounts.c.created_at,
            teams.c.name.label("team"),
            func.count(hosts.c.host_id).label("machines"),
            (func.max(hosts.c.seen_at) >= alive_since).label("is_computing"),
        )
        .outerjoin(hosts, hosts.c.account_id == accounts.c.account_id)
        .outerjoin(teams, teams.c.team_id == accounts.c.team_id)
        .where(accounts.c.account_id.in_(account_ids))
        .group_by(accounts.c.account_id, accounts.c.created_at, teams.c.name)
    )
    return {row.account_id: row for row in connection.execute(query)}
