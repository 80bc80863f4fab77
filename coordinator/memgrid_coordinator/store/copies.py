"""Consistent copies of a whole database while it is in use, and their way back into one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, inspect, select, text
from sqlmodel import SQLModel

from memgrid_coordinator.store import tables as _tables  # noqa: F401 - declares the metadata
from memgrid_coordinator.store.dialects import IS_SNAPSHOT, WRITES, open_engine
from memgrid_coordinator.store.upgrading import migrate

ROWS_AT_ONCE = 2000
COUNTED = ("accounts", "campaigns", "documents", "units", "leases", "credits", "pool_cubes")
"""Tables whose sizes tell people whether this is the grid they mean."""


def file_of(url: str) -> Path | None:
    """The file of a SQLite database; None for any other."""
    scheme, _, path = url.partition(":///")
    return Path(path) if scheme.startswith("sqlite") else None


def snapshot(url: str, target: Path) -> None:
    """Write what a database holds at this moment into a SQLite file; nobody who writes has to wait.

    SQLite copies its own pages. Of another database all rows are read in one transaction that sees one moment.
    """
    target.unlink(missing_ok=True)
    source = file_of(url)
    if source is not None:
        with closing(_read(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
            new.execute("PRAGMA journal_mode=DELETE")  # one file, no log beside it
        return
    migrate(f"sqlite:///{target}")
    engine = open_engine(url)
    copied = open_engine(f"sqlite:///{target}")
    try:
        with engine.connect().execution_options(**IS_SNAPSHOT[engine.dialect.name]) as connection:
            _copy(connection, copied)
    finally:
        engine.dispose()
        copied.dispose()
    with closing(sqlite3.connect(target)) as whole:
        whole.execute("PRAGMA journal_mode=DELETE")


def pour(source: Path, url: str) -> None:
    """Put all rows of a SQLite file into an empty database elsewhere, whose schema is brought up to date first."""
    migrate(f"sqlite:///{source}")
    migrate(url)
    engine, copied = open_engine(url), open_engine(f"sqlite:///{source}")
    try:
        with copied.connect() as connection:
            _copy(connection, engine)
    finally:
        engine.dispose()
        copied.dispose()


def is_empty(url: str) -> bool:
    """Whether no table of ours is there, or none has a row."""
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            there = set(inspect(connection).get_table_names())
            ours = [table for table in SQLModel.metadata.sorted_tables if table.name in there]
            return not any(connection.execute(select(table).limit(1)).first() for table in ours)
    finally:
        engine.dispose()


def counts_in(path: Path) -> dict[str, int]:
    """Rows by table in a SQLite file, of the tables that people know."""
    with closing(_read(path)) as connection:
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in COUNTED}


def version_in(path: Path) -> str:
    """The version of the schema in a SQLite file."""
    with closing(_read(path)) as connection:
        version: str = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    return version


def problems_of(path: Path) -> list[str]:
    """What SQLite finds wrong with a file: damaged pages, rows that point nowhere. Reads all of it."""
    with closing(_read(path)) as connection:
        try:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            lost = connection.execute("PRAGMA foreign_key_check")
            found += [f"{table} row {row} has no {parent}" for table, row, parent, _ in lost]
        except sqlite3.DatabaseError as error:
            return [str(error)]
    return found


def _read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, not even the kind of the file's log."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _copy(source: Connection, target: Engine) -> None:
    with target.connect().execution_options(**WRITES) as connection, connection.begin():
        for table in SQLModel.metadata.sorted_tables:
            for rows in _pages(source, table):
                connection.execute(insert(table), rows)
            if target.dialect.name == "postgresql":
                _continue_numbers(connection, table)


def _pages(connection: Connection, table: Table) -> Iterable[list[dict[str, Any]]]:
    """All rows, by primary key: a unit's parent was there before it, and is so again."""
    found = connection.execution_options(stream_results=True, yield_per=ROWS_AT_ONCE).execute(
        select(table).order_by(*table.primary_key.columns)
    )
    for page in found.mappings().partitions(ROWS_AT_ONCE):
        yield [dict(row) for row in page]


def _continue_numbers(connection: Connection, table: Table) -> None:
    """Rows came with their numbers; let the next ones follow them."""
    for column in table.primary_key.columns:
        if table.autoincrement_column is column:
            given = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
            highest = f"(SELECT max({column.name}) FROM {table.name})"
            connection.execute(text(f"SELECT setval({given}, {highest}) WHERE {highest} IS NOT NULL"))
