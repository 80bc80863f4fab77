"""The database goes away and comes back: callers are told so, nothing is lost, and nobody has to restart anything."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, text

from memgrid.errors import InvalidError, UnavailableError
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.hosts import add_invite
from memgrid_coordinator.store.tables import invites
from tests.postgres import Postgres

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def codes(connection: Connection) -> list[str]:
    return sorted(connection.execute(select(invites.c.code_digest)).scalars())


async def add(store: Store, code: str) -> None:
    await store.write(lambda connection: add_invite(connection, code, 1, NOW))


async def test_a_server_that_stops_and_starts_is_found_again(postgres: Postgres) -> None:
    store = Store(postgres.new_database())
    await add(store, "before")
    assert await store.read(codes) == ["before"]
    await asyncio.to_thread(postgres.stop)
    try:
        with pytest.raises(UnavailableError, match="the grid's database can't be used now"):
            await add(store, "lost")
        several = await asyncio.gather(*(add(store, f"lost{n}") for n in range(4)), return_exceptions=True)
        assert {type(one) for one in several} == {UnavailableError}
        with pytest.raises(UnavailableError):
            await store.read(codes)
    finally:
        await asyncio.to_thread(postgres.start)
    await asyncio.gather(*(add(store, f"after{n}") for n in range(3)))
    assert await store.read(codes) == ["after0", "after1", "after2", "before"]
    store.close()


async def test_an_idle_store_outlives_a_restart_of_its_server_unharmed(postgres: Postgres) -> None:
    """Nobody asked anything meanwhile: nobody is told anything."""
    store = Store(postgres.new_database())
    await add(store, "before")
    assert await store.read(codes) == ["before"]
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
    await add(store, "after")
    assert await store.read(codes) == ["after", "before"]
    store.close()


async def test_a_connection_that_is_cut_in_the_middle_takes_the_step_with_it(postgres: Postgres) -> None:
    store = Store(postgres.new_database())

    def cut(connection: Connection) -> None:
        add_invite(connection, "half", 1, NOW)
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(UnavailableError):
        await store.write(cut)
    both = await asyncio.gather(add(store, "next"), store.write(cut), return_exceptions=True)
    assert isinstance(both[1], UnavailableError)
    await add(store, "last")
    assert set(await store.read(codes)) - {"next"} == {"last"}
    store.close()


async def test_a_file_that_somebody_else_locks_is_waited_for_and_then_told(tmp_path: Path) -> None:
    path = tmp_path / "memgrid.db"
    store = Store(f"sqlite:///{path}")
    await store.write(lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout=200").close())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match=r"can't be used now \(database is locked\); try again"):
            await add(store, "code")
        waiting = asyncio.ensure_future(add(store, "patient"))
        await asyncio.sleep(0.05)
        other.execute("COMMIT")
        await waiting
    assert await store.read(codes) == ["patient"]
    store.close()


async def test_a_mistake_of_ours_is_not_called_an_outage(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'memgrid.db'}")
    await add(store, "code")
    with pytest.raises(Exception, match="UNIQUE") as raised:
        await add(store, "code")
    assert not isinstance(raised.value, UnavailableError)
    store.close()


def test_a_server_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="can't be used now") as raised:
        Store(f"postgresql://grid:secret@/memgrid?host={tmp_path}")
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["mysql://grid:secret@db/memgrid", "memgrid.db", "postgresql+asyncpg://", ""])
def test_a_url_that_can_not_be_meant_is_refused(url: str) -> None:
    with pytest.raises(InvalidError, match=r"--database: expected sqlite:///FILE or postgresql://") as raised:
        Store(url)
    assert "secret" not in str(raised.value)
