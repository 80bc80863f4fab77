"""What the store promises whoever writes through it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Connection, cast, event, func, insert, select, true, update
from sqlmodel import SQLModel

from memgrid.errors import InvalidError
from memgrid_coordinator.records import Event
from memgrid_coordinator.store import events, units
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.hosts import add_invite, use_invite
from memgrid_coordinator.store.tables import accounts, invites
from memgrid_coordinator.store.types import from_microseconds, to_microseconds
from tests.contract.conftest import a_host

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(empty_store: Store) -> Store:
    return empty_store


def count(connection: Connection) -> int:
    return len(connection.execute(select(invites.c.code_digest)).all())


async def test_a_step_that_raises_leaves_nothing_and_takes_no_neighbour_along(store: Store) -> None:
    def bad(connection: Connection) -> None:
        add_invite(connection, "bad", 1, NOW)
        raise LookupError("half done")

    steps = [store.write(lambda c, name=f"good{n}": add_invite(c, name, 1, NOW)) for n in range(10)]
    outcomes = await asyncio.gather(*steps[:5], store.write(bad), *steps[5:], return_exceptions=True)
    assert [type(one) for one in outcomes if one is not None] == [LookupError]
    assert await store.read(count) == 10


async def test_a_lone_step_that_raises_leaves_nothing(store: Store) -> None:
    def bad(connection: Connection) -> None:
        add_invite(connection, "bad", 1, NOW)
        raise LookupError("half done")

    with pytest.raises(LookupError):
        await store.write(bad)
    assert await store.read(count) == 0
    await store.write(lambda connection: add_invite(connection, "good", 1, NOW))
    assert await store.read(count) == 1


async def test_steps_that_wait_share_a_transaction(database: str) -> None:
    batches: list[int] = []
    store = Store(database, observer=lambda *, steps, seconds: batches.append(steps))
    gate = threading.Event()
    blocked = store.write(lambda connection: gate.wait(10))
    waiting = [store.write(lambda c, name=str(n): add_invite(c, name, 1, NOW)) for n in range(40)]
    tasks = [asyncio.ensure_future(one) for one in (blocked, *waiting)]
    await asyncio.sleep(0.1)
    gate.set()
    await asyncio.gather(*tasks)
    store.close()
    assert sum(batches) == 41
    assert len(batches) <= 3, "one for the step that blocked, one for all that gathered meanwhile"


async def test_sums_of_big_numbers_are_numbers(store: Store) -> None:
    """PostgreSQL's are decimals, which Python refuses to divide by a float."""

    def totals(connection: Connection) -> list[Any]:
        connection.execute(insert(accounts).values(account_id="a", public_key=b"k", created_at=NOW))
        sizes = cast(2**62, BigInteger)
        return list(connection.execute(select(func.sum(sizes), func.sum(sizes) + 0.5).select_from(accounts)).one())

    whole, broken = await store.write(totals)
    assert (type(whole), whole) == (int, 2**62)
    assert isinstance(broken, float)


async def test_nobody_loses_an_update(store: Store) -> None:
    await store.write(lambda connection: add_invite(connection, "code", 25, NOW))
    taken = await asyncio.gather(*(store.write(lambda connection: use_invite(connection, "code")) for _ in range(40)))
    assert sum(taken) == 25


async def test_an_acknowledged_step_is_seen_by_another_process(store: Store) -> None:
    await store.write(lambda connection: add_invite(connection, "code", 1, NOW))
    ask = "import sys; from memgrid_coordinator.store.engine import open_engine as o; print(o(sys.argv[1]).connect()"
    ask += ".exec_driver_sql('SELECT code_digest FROM invites').scalars().all())"
    told = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", ask, store.url], text=True)
    assert told == "['code']\n"


async def test_every_commit_is_synced_to_disk(store: Store) -> None:
    def settings(connection: Connection) -> list[Any]:
        sqlite = connection.dialect.name == "sqlite"
        names, word = (
            (("journal_mode", "synchronous"), "PRAGMA") if sqlite else (("fsync", "synchronous_commit"), "SHOW")
        )
        return [connection.exec_driver_sql(f"{word} {name}").scalar() for name in names]

    full = 2
    assert await store.write(settings) in (["wal", full], ["on", "on"])


async def test_a_reader_sees_one_moment(store: Store) -> None:
    """What is written between two of its queries it sees in neither."""
    began, written = threading.Event(), threading.Event()

    def read_twice(connection: Connection) -> tuple[int, int]:
        before = count(connection)
        began.set()
        assert written.wait(10)
        return before, count(connection)

    reading = asyncio.ensure_future(store.read(read_twice))
    await asyncio.to_thread(began.wait, 10)
    await store.write(lambda connection: add_invite(connection, "code", 1, NOW))
    written.set()
    assert await reading == (0, 0)
    assert await store.read(count) == 1


async def test_two_stores_on_one_database_are_one_writer(database: str) -> None:
    """Reading, and then writing what was read, loses nothing, although each believes to be alone."""
    first, second = Store(database), Store(database)

    def one_more(connection: Connection) -> None:
        left = connection.execute(select(invites.c.uses_left)).scalar_one()
        connection.execute(update(invites).values(uses_left=left + 1))

    await first.write(lambda connection: add_invite(connection, "code", 0, NOW))
    await asyncio.gather(*(one.write(one_more) for _ in range(60) for one in (first, second)))
    assert await first.read(lambda connection: connection.execute(select(invites.c.uses_left)).scalar_one()) == 120
    first.close()
    second.close()


async def test_the_migrations_make_the_declared_schema(store: Store) -> None:
    def differences(connection: Connection) -> list[Any]:
        # An index with a direction can't be reflected; the next test asks for that one.
        options = {"include_object": lambda _object, name, *_: name != "units_to_lease"}
        return compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*units_to_lease.*")
        assert await store.read(differences) == []


async def test_the_dispatcher_walks_its_own_index(sqlite_store: Store) -> None:
    """Without it every Sync would sort all open units."""

    def plan(connection: Connection) -> str:
        seen: list[tuple[str, Any]] = []

        def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
            seen.append((statement, parameters))

        event.listen(connection, "before_cursor_execute", note)
        units.lease_candidates(connection, a_host("somebody"), 5, NOW)
        event.remove(connection, "before_cursor_execute", note)
        statement, parameters = seen[-1]
        driver = connection.connection.dbapi_connection
        assert driver is not None
        return str(driver.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

    told = await sqlite_store.read(plan)
    assert "USING INDEX units_to_lease" in told
    assert "TEMP B-TREE" not in told


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_keep_every_microsecond(moment: datetime) -> None:
    assert from_microseconds(to_microseconds(moment)) == moment


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        to_microseconds(datetime(2026, 1, 1) + timedelta(0))  # noqa: DTZ001 - that is the point


async def test_the_events_of_a_step_stand_in_order_and_fall_with_it(empty_store: Store) -> None:
    def told(connection: Connection, *names: str) -> None:
        for name in names:
            events.append(connection, [Event(at=NOW, name=name)])

    def failing(connection: Connection) -> None:
        told(connection, "never")
        raise InvalidError("no")

    steps = [empty_store.write(lambda connection: told(connection, "one", "two")), empty_store.write(failing)]
    steps.append(empty_store.write(lambda connection: told(connection, "three")))
    _, failure, _ = await asyncio.gather(*steps, return_exceptions=True)
    assert isinstance(failure, InvalidError)
    found = await empty_store.read(lambda connection: events.of(connection, true(), 10))
    assert [event.name for event in found] == ["one", "two", "three"]
