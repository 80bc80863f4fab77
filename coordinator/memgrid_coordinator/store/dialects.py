"""Where SQLite and PostgreSQL differ: engines whose transactions mean the same on both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from memgrid.errors import InvalidError

WRITES = {"memgrid_writes": True}
"""Option of a connection that will change something: its transactions are the only ones to do so."""
IS_SNAPSHOT: Mapping[str, Mapping[str, Any]] = {
    "sqlite": {},  # a reader's transaction is one
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}
WRITER_LOCK = 0x6D656D67
"""The advisory lock of whoever writes; its number means nothing, but must never change."""
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "busy_timeout=10000",
    "cache_size=-65536",
    "wal_autocheckpoint=4000",
    "temp_store=MEMORY",
)
# A coordinator that hangs, or a network that ate its goodbye, must not keep the others from writing for ever.
_POSTGRES_OPTIONS = (
    "-c synchronous_commit=on -c lock_timeout=30s -c idle_in_transaction_session_timeout=60s -c timezone=UTC"
)
_CONNECT_LIMIT_S = 10


def open_engine(url: str) -> Engine:
    """An engine for a SQLAlchemy URL; raises InvalidError for one that can't be meant."""
    where = database_url(url)
    if where.get_backend_name() == "sqlite":
        engine = create_engine(where, pool_size=8, max_overflow=0)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        engine = create_engine(
            where,
            pool_size=8,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": _CONNECT_LIMIT_S, "options": _POSTGRES_OPTIONS},
        )
    except ModuleNotFoundError:
        raise InvalidError("--database: PostgreSQL needs its driver: pip install 'memgrid[postgres]'") from None
    event.listen(engine, "connect", _prepare_postgres)
    event.listen(engine, "begin", _begin_postgres)
    return engine


def database_url(url: str) -> URL:
    """What a person's URL means: `postgresql://` is spoken with psycopg 3.

    >>> database_url("postgresql://grid@db.example/memgrid").drivername
    'postgresql+psycopg'
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        found = URL.create("unknown")
    if found.drivername in ("postgresql", "postgres"):
        found = found.set(drivername="postgresql+psycopg")
    if found.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        # The URL may hold a password: it is not repeated.
        raise InvalidError("--database: expected sqlite:///FILE or postgresql://USER@HOST/NAME")
    return found


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins too late: two readers could both write what they read.
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("memgrid_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgres(connection: Any, _record: Any) -> None:
    from psycopg.adapt import Loader

    class Number(Loader):
        """Sums of big integers come as decimals, which don't add up with anything: numbers, as SQLite gives them."""

        def load(self, data: bytes | bytearray | memoryview) -> int | float:
            said = bytes(data)
            return int(said) if said.lstrip(b"-").isdigit() else float(said)

    connection.adapters.register_loader("numeric", Number)


def _begin_postgres(connection: Connection) -> None:
    # One writer at a time, whichever coordinator it belongs to: what a step reads stays so until it is committed, as
    # on SQLite. The lock ends with its transaction, so a coordinator that dies holds up nobody.
    if connection.get_execution_options().get("memgrid_writes", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
