"""One database: the engine, its pragmas, its migrations, and the doors `read` and `write`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event

from memgrid_coordinator.store.writer import BatchObserver, Writer

Value = TypeVar("Value")


class Store:
    """Everything durable. Steps are plain functions of a connection; their callers never see a session."""

    def __init__(self, url: str, *, observer: BatchObserver | None = None, readers: int = 2) -> None:
        self.url = url
        migrate(url)
        self.engine = open_engine(url)
        self._writer = Writer(self.engine, observer)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="store-read")

    async def write(self, step: Callable[[Connection], Value]) -> Value:
        """Run one atomic step on the writer; returns once it is on disk."""
        return await asyncio.wrap_future(self._writer.submit(step))

    async def read(self, query: Callable[[Connection], Value]) -> Value:
        """Run a query on a snapshot of its own; it sees every step that was acknowledged before."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._query, query)

    def _query(self, query: Callable[[Connection], Value]) -> Value:
        with self.engine.connect() as connection:
            return query(connection)

    def close(self) -> None:
        """Finish what is queued, then let go of the files."""
        self._writer.close()
        self._readers.shutdown()
        self.engine.dispose()


def open_engine(url: str) -> Engine:
    """An engine whose transactions mean the same on SQLite and PostgreSQL."""
    engine = create_engine(url, pool_size=8, max_overflow=0)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins too late: two readers could both write what they read.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
        "cache_size=-65536",
        "wal_autocheckpoint=4000",
        "temp_store=MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("memgrid_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def migrate(url: str) -> None:
    """Bring the schema to the newest version."""
    command.upgrade(alembic_config(url), "head")


def alembic_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config
