"""The ledger on every database: totals are sums, lines are never changed, and a device makes no difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, select, text, update
from sqlalchemy.exc import DBAPIError

from memgrid.units import AccountId, LeaseId
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.metrics import UNIT_KINDS
from memgrid_coordinator.store import credits as ledger
from memgrid_coordinator.store.dialects import WRITES
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.tables import accounts, credit_days
from tests.ledgers import NOW, add_accounts, add_lease, add_unit, lines_of

ACCOUNTS = ("ada", "bob", "cyd")
TEAMS = (None, "t1", "t2")
HUGE = 2**62
"""FLOPs whose sum leaves 64 bits after two."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("ledger")
    store = Store(f"sqlite:///{folder / 'memgrid.db'}")
    yield store.engine
    store.close()


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["earn", "earn", "reverse", "join"]),
        st.integers(0, len(ACCOUNTS) - 1),
        st.integers(0, 40),
        st.sampled_from([1, 7, 2**32 - 1, 2**32, HUGE]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_EVENTS)
def test_a_total_is_what_was_earned_less_what_was_taken_back(
    engine: Engine, history: list[tuple[str, int, int, int]]
) -> None:
    """Over any history, with whatever team its account was in; the sums by day say the same as the lines."""
    earned: dict[str, tuple[str, int, int, str]] = {}
    reversed_: set[str] = set()
    with engine.connect().execution_options(**WRITES) as connection, connection.begin() as transaction:
        add_accounts(connection, ACCOUNTS)
        teams: dict[str, str | None] = {}
        for number, (what, who, pick, flops) in enumerate(history):
            account, day = ACCOUNTS[who], NOW + timedelta(days=number // 5)
            if what == "join":
                teams[account] = TEAMS[pick % len(TEAMS)]
                where = accounts.c.account_id == account
                connection.execute(update(accounts).where(where).values(team_id=teams[account]))
            elif what == "earn":
                lease = add_lease(connection, f"lease{number}", account, add_unit(connection, number, flops=flops))
                ledger.grant(connection, [(lease, flops)], day)
                earned[lease.lease_id] = (account, flops, day.toordinal(), teams.get(account) or "")
            elif earned:
                name = sorted(earned)[pick % len(earned)]
                taken = ledger.reverse(connection, [LeaseId(name), LeaseId("never")], day)
                assert taken == (0 if name in reversed_ else earned[name][1]), "taken back once"
                reversed_.add(name)
        standing = {name: one for name, one in earned.items() if name not in reversed_}
        for account in ACCOUNTS:
            mine = [one for one in standing.values() if one[0] == account]
            assert ledger.total(connection, AccountId(account)) == sum(flops for _, flops, _, _ in mine)
            assert ledger.results(connection, AccountId(account)) == len(mine)
        assert sums(connection) == expected(standing.values())
        lines = lines_of(connection)
        assert Counter(lines).most_common(1) == [] or Counter(lines).most_common(1)[0][1] == 1
        assert {name for name, entry, _ in lines if entry == "reversed"} == reversed_
        transaction.rollback()


def sums(connection: Connection) -> dict[tuple[int, str, str], tuple[int, int]]:
    found = connection.execute(select(credit_days))
    return {
        (row.day, row.account_id, row.team_id): (row.results, ledger.whole(row.flops_high, row.flops_low))
        for row in found
        if row.results or row.flops_high or row.flops_low
    }


def expected(standing: object) -> dict[tuple[int, str, str], tuple[int, int]]:
    found: dict[tuple[int, str, str], tuple[int, int]] = {}
    for account, flops, day, team in standing:  # type: ignore[attr-defined]
        for key in ((day, account, team), (ledger.EVER, account, team)):
            results, total = found.get(key, (0, 0))
            found[key] = (results + 1, total + flops)
    return found


@pytest.fixture
async def store(empty_store: Store) -> Store:
    await empty_store.write(lambda connection: add_accounts(connection, ACCOUNTS))
    return empty_store


async def test_sums_that_leave_64_bits_stay_exact(store: Store) -> None:
    def step(connection: Connection) -> tuple[int, int]:
        leases = [add_lease(connection, f"l{n}", "ada", add_unit(connection, n, flops=HUGE + n)) for n in range(1, 5)]
        ledger.grant(connection, [(lease, HUGE + lease.unit_id) for lease in leases], NOW)
        before = ledger.total(connection, AccountId("ada"))
        ledger.reverse(connection, [leases[0].lease_id], NOW + timedelta(days=3))
        return before, ledger.total(connection, AccountId("ada"))

    assert await store.write(step) == (4 * HUGE + 10, 3 * HUGE + 9)


async def test_every_device_earns_the_same_for_the_same_unit(store: Store) -> None:
    """What counts is the unit alone: not the host, its speed, or what it said it took."""

    def step(connection: Connection) -> set[int]:
        unit_id = add_unit(connection, 1, flops=12345)
        held = [add_lease(connection, f"lease-{name}", name, unit_id) for name in ACCOUNTS]
        connection.execute(text("UPDATE leases SET compute_s = fence * 100 WHERE lease_id = 'lease-ada'"))
        connection.execute(text("UPDATE hosts SET flops_per_s = 1e15 WHERE account_id = 'bob'"))
        ledger.grant(connection, [(lease, 12345) for lease in held], NOW)
        return {ledger.total(connection, AccountId(name)) for name in ACCOUNTS}

    assert await store.write(step) == {12345}


async def test_a_lease_earns_once_and_gives_back_once(store: Store) -> None:
    def twice(connection: Connection) -> None:
        lease = add_lease(connection, "one", "ada", add_unit(connection, 1))
        ledger.grant(connection, [(lease, 1000)], NOW)
        ledger.grant(connection, [(lease, 1000)], NOW)

    with pytest.raises(Exception, match=r"(?i)unique"):
        await store.write(twice)
    assert await store.read(lines_of) == []


async def test_the_database_itself_keeps_the_ledger(store: Store) -> None:
    def earn(connection: Connection) -> None:
        ledger.grant(connection, [(add_lease(connection, "one", "ada", add_unit(connection, 1)), 1000)], NOW)

    await store.write(earn)
    changes = ["UPDATE credits SET flops = 1", "DELETE FROM credits"]
    for change in changes if store.is_file else [*changes, "TRUNCATE credits"]:
        with pytest.raises(DBAPIError, match="written once"), store.engine.begin() as connection:
            connection.execute(text(change))
    assert await store.read(lines_of) == [("one", "earned", 1000)]


async def test_credit_in_escrow_is_that_of_units_in_one_state(store: Store) -> None:
    def step(connection: Connection) -> tuple[tuple[int, int], tuple[int, int]]:
        waiting = [add_unit(connection, n, flops=HUGE, state="provisional") for n in (1, 2, 3)]
        add_lease(connection, "a", "ada", waiting[0])
        add_lease(connection, "b", "ada", waiting[1], state=LeaseState.REPORTED)
        add_lease(connection, "c", "ada", waiting[2], state=LeaseState.REJECTED)
        add_lease(connection, "d", "ada", add_unit(connection, 4, state=UnitState.CHECKING))
        add_lease(connection, "e", "bob", waiting[2])
        return (
            ledger.in_escrow(connection, AccountId("ada"), "provisional", UNIT_KINDS),
            ledger.in_escrow(connection, AccountId("ada"), "nowhere", UNIT_KINDS),
        )

    assert await store.write(step) == ((2 * HUGE, 2), (0, 0))
