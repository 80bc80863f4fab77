"""What the store promises whoever writes through it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, event, select
from sqlmodel import SQLModel

from memgrid.units import AccountId
from memgrid_coordinator.store import units
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.hosts import add_invite, use_invite
from memgrid_coordinator.store.tables import invites
from memgrid_coordinator.store.types import from_microseconds, to_microseconds

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'memgrid.db'}")
    yield opened
    opened.close()


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


async def test_steps_that_wait_share_a_transaction(tmp_path: Path) -> None:
    batches: list[int] = []
    store = Store(f"sqlite:///{tmp_path / 'memgrid.db'}", observer=lambda *, steps, seconds: batches.append(steps))
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


async def test_nobody_loses_an_update(store: Store) -> None:
    await store.write(lambda connection: add_invite(connection, "code", 25, NOW))
    taken = await asyncio.gather(*(store.write(lambda connection: use_invite(connection, "code")) for _ in range(40)))
    assert sum(taken) == 25


async def test_an_acknowledged_step_is_seen_by_another_process(store: Store, tmp_path: Path) -> None:
    await store.write(lambda connection: add_invite(connection, "code", 1, NOW))
    with sqlite3.connect(tmp_path / "memgrid.db") as other:
        assert other.execute("SELECT code_digest FROM invites").fetchall() == [("code",)]


async def test_every_commit_is_synced_to_disk(store: Store) -> None:
    def settings(connection: Connection) -> list[Any]:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

    full = 2
    assert await store.write(settings) == ["wal", full]


async def test_the_migrations_make_the_declared_schema(store: Store) -> None:
    def differences(connection: Connection) -> list[Any]:
        # An index with a direction can't be reflected; the next test asks for that one.
        options = {"include_object": lambda _object, name, *_: name != "units_to_lease"}
        return compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*units_to_lease.*")
        assert await store.read(differences) == []


async def test_the_dispatcher_walks_its_own_index(store: Store) -> None:
    """Without it every Sync would sort all open units."""

    def plan(connection: Connection) -> str:
        seen: list[tuple[str, Any]] = []

        def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
            seen.append((statement, parameters))

        event.listen(connection, "before_cursor_execute", note)
        units.lease_candidates(connection, AccountId("somebody"), 5, NOW)
        event.remove(connection, "before_cursor_execute", note)
        statement, parameters = seen[-1]
        driver = connection.connection.dbapi_connection
        assert driver is not None
        return str(driver.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

    told = await store.read(plan)
    assert "USING INDEX units_to_lease" in told
    assert "TEMP B-TREE" not in told


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_keep_every_microsecond(moment: datetime) -> None:
    assert from_microseconds(to_microseconds(moment)) == moment


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        to_microseconds(datetime(2026, 1, 1) + timedelta(0))  # noqa: DTZ001 - that is the point
