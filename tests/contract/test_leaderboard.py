"""Boards on every database: ranked by what still stands, for the team of the time, without those who were banned."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, event, update

from memgrid.leaderboard import Period
from memgrid.nickname import nickname
from memgrid.units import AccountId, LeaseId
from memgrid_coordinator.store import bans, leaderboard
from memgrid_coordinator.store import credits as ledger
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.tables import accounts
from memgrid_coordinator.store.teams import Team, add
from tests.ledgers import NOW, add_accounts, add_lease, add_unit

HUGE = 2**62


def join(connection: Connection, account: str, team: str | None) -> None:
    connection.execute(update(accounts).where(accounts.c.account_id == account).values(team_id=team))


def earn(connection: Connection, account: str, number: int, flops: int, *, days_ago: int = 0) -> LeaseId:
    lease = add_lease(connection, f"l{number}", account, add_unit(connection, number, flops=flops))
    ledger.grant(connection, [(lease, flops)], NOW - timedelta(days=days_ago))
    return lease.lease_id


def a_history(connection: Connection) -> None:
    """ada moved from t1 to t2; bob gave most, long ago; cyd was wrong once; dan is banned; eve was wrong always."""
    add_accounts(connection, ("ada", "bob", "cyd", "dan", "eve"))
    for team in ("t1", "t2"):
        named = {"name": f"Team {team}", "likeness": team, "code_digest": "", "founded_by": AccountId("ada")}
        add(connection, Team(team_id=team, founded_at=NOW, **named))  # type: ignore[arg-type]
    join(connection, "ada", "t1")
    earn(connection, "ada", 1, 100)
    join(connection, "ada", "t2")
    earn(connection, "ada", 2, 30, days_ago=6)
    join(connection, "bob", "t2")
    for number in (3, 4, 5):
        earn(connection, "bob", number, HUGE, days_ago=14)
    earn(connection, "cyd", 6, 50)
    wrong = earn(connection, "cyd", 7, 5000)
    ledger.reverse(connection, [wrong], NOW)
    ledger.reverse(connection, [earn(connection, "eve", 9, 9)], NOW)
    join(connection, "dan", "t1")
    earn(connection, "dan", 8, 70)
    bans.ban(connection, AccountId("dan"), "cheated", NOW)


def board(connection: Connection, period: Period) -> list[tuple[int, str, float, int]]:
    lines = leaderboard.of_accounts(connection, first_day=period.first_day(NOW), alive_since=NOW, skip=0, limit=10)
    return [(line.rank, line.name, line.flops, line.results) for line in lines]


async def test_accounts_are_ranked_by_what_still_stands(empty_store: Store) -> None:
    await empty_store.write(a_history)
    ada, bob, cyd = (nickname(name) for name in ("ada", "bob", "cyd"))
    assert await empty_store.read(lambda connection: board(connection, Period.ALL)) == [
        (1, bob, 3.0 * HUGE, 3),
        (2, ada, 130.0, 2),
        (3, cyd, 50.0, 1),
    ]
    week = [(1, ada, 130.0, 2), (2, cyd, 50.0, 1)]
    assert await empty_store.read(lambda connection: board(connection, Period.WEEK)) == week
    today = await empty_store.read(lambda connection: board(connection, Period.DAY))
    assert today == [(1, ada, 100.0, 1), (2, cyd, 50.0, 1)], "what was taken back today is not missing today"
    sums = await empty_store.read(lambda connection: leaderboard.sums_of_accounts(connection, None))
    assert (sums.total, sums.flops, sums.results) == (3, 3.0 * HUGE + 180, 6)


async def test_credit_stays_with_the_team_it_was_earned_in(empty_store: Store) -> None:
    await empty_store.write(a_history)

    def teams(connection: Connection) -> list[tuple[str, float, int, int]]:
        lines = leaderboard.of_teams(connection, first_day=None, skip=0, limit=10)
        return [(line.name, line.flops, line.results, line.members) for line in lines]

    assert await empty_store.read(teams) == [("Team t2", 3.0 * HUGE + 30, 4, 2), ("Team t1", 100.0, 1, 0)]
    assert (await empty_store.read(lambda connection: leaderboard.sums_of_teams(connection, None))).total == 2


async def test_an_account_learns_its_rank(empty_store: Store) -> None:
    await empty_store.write(a_history)
    found = await empty_store.read(
        lambda connection: [leaderboard.rank_of(connection, AccountId(name)) for name in ("bob", "cyd", "eve", "dan")]
    )
    assert found == [(1, 3), (3, 3), (0, 3), (0, 3)]


async def test_a_board_does_not_read_the_ledger(empty_store: Store) -> None:
    """Nor does a team's: the ledger has a line for every result there ever was."""
    await empty_store.write(a_history)

    def told(connection: Connection) -> list[str]:
        seen: list[str] = []
        event.listen(connection, "before_cursor_execute", lambda *given: seen.append(given[2]))
        board(connection, Period.MONTH)
        leaderboard.of_teams(connection, first_day=None, skip=0, limit=10)
        leaderboard.rank_of(connection, AccountId("ada"))
        ledger.total(connection, AccountId("ada"))
        return seen

    statements = await empty_store.read(told)
    assert len(statements) >= 7
    assert not [one for one in statements if " credits" in one]
