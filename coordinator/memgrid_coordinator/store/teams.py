"""Teams, and which account is in which."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from memgrid.units import AccountId
from memgrid_coordinator.store.tables import accounts, teams


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    team_id: str
    name: str
    likeness: str
    code_digest: str
    """Of the code that lets others in; the code itself is kept nowhere."""
    founded_by: AccountId
    founded_at: datetime


def add(connection: Connection, team: Team) -> None:
    """Found a team; the table refuses a second one of the same likeness."""
    connection.execute(
        insert(teams).values(
            team_id=team.team_id,
            name=team.name,
            likeness=team.likeness,
            code_digest=team.code_digest,
            founded_by=team.founded_by,
            founded_at=team.founded_at,
        )
    )


def of_likeness(connection: Connection, likeness: str) -> Team | None:
    """The team whose name looks like that."""
    return _team(connection.execute(select(teams).where(teams.c.likeness == likeness)).one_or_none())


def of_account(connection: Connection, account_id: AccountId) -> Team | None:
    """The team an account is in."""
    query = select(teams).join(accounts, accounts.c.team_id == teams.c.team_id)
    return _team(connection.execute(query.where(accounts.c.account_id == account_id)).one_or_none())


def founded_by(connection: Connection, account_id: AccountId) -> int:
    """How many teams an account has founded."""
    query = select(func.count()).select_from(teams).where(teams.c.founded_by == account_id)
    return int(connection.execute(query).scalar_one())


def move(
    connection: Connection, account_id: AccountId, team_id: str | None, now: datetime, *, moves_max: int
) -> bool:
    """Put an account into a team, or into none; False when it has moved so often today that it has to wait."""
    today, here = now.toordinal(), accounts.c.account_id == account_id
    connection.execute(
        update(accounts).where(here, accounts.c.team_day != today).values(team_day=today, team_moves=0)
    )
    moved = connection.execute(
        update(accounts)
        .where(here, accounts.c.team_moves < moves_max)
        .values(team_id=team_id, team_moves=accounts.c.team_moves + 1)
    )
    return moved.rowcount == 1


def _team(row: Any) -> Team | None:
    if row is None:
        return None
    return Team(
        team_id=row.team_id,
        name=row.name,
        likeness=row.likeness,
        code_digest=row.code_digest,
        founded_by=AccountId(row.founded_by),
        founded_at=row.founded_at,
    )
