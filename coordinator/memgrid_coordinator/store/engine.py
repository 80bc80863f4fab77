"""One database: the doors `read` and `write`, and what people are told when nobody opens them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from memgrid.errors import UnavailableError
from memgrid_coordinator.store.dialects import IS_SNAPSHOT, open_engine
from memgrid_coordinator.store.upgrading import alembic_config, migrate
from memgrid_coordinator.store.writer import BatchObserver, Writer

__all__ = ["Store", "alembic_config", "migrate", "open_engine"]

Value = TypeVar("Value")


class Store:
    """Everything durable. Steps are plain functions of a connection; their callers never see a session.

    Both doors raise UnavailableError when the database is away, locked or full: nothing happened, or all of it and
    the answer got lost; whoever asks again is told.
    """

    def __init__(self, url: str, *, observer: BatchObserver | None = None, readers: int = 2) -> None:
        self.url = url
        try:
            migrate(url)
        except DBAPIError as error:
            raise _unavailable(error) from None
        self.engine = open_engine(url)
        self._snapshots = self.engine.execution_options(**IS_SNAPSHOT[self.engine.dialect.name])
        self._writer = Writer(self.engine, observer)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="store-read")

    @property
    def is_file(self) -> bool:
        """Whether the database is a file, which one coordinator has for itself."""
        return self.engine.dialect.name == "sqlite"

    async def write(self, step: Callable[[Connection], Value]) -> Value:
        """Run one atomic step on the writer; returns once it is on disk."""
        try:
            return await asyncio.wrap_future(self._writer.submit(step))
        except (DBAPIError, PendingRollbackError) as error:
            raise _unavailable(error) from error

    async def read(self, query: Callable[[Connection], Value]) -> Value:
        """Run a query on a snapshot of its own; it sees every step that was acknowledged before."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._query, query)
        except (DBAPIError, PendingRollbackError) as error:
            raise _unavailable(error) from error

    def _query(self, query: Callable[[Connection], Value]) -> Value:
        with self._snapshots.connect() as connection:
            return query(connection)

    def close(self) -> None:
        """Finish what is queued, then let go of the files."""
        self._writer.close()
        self._readers.shutdown()
        self.engine.dispose()


def _unavailable(error: DBAPIError | PendingRollbackError) -> Exception:
    """What to tell callers: that the database can't be had at the moment; a mistake in a statement is our own."""
    if isinstance(error, DBAPIError) and not error.connection_invalidated and not _passes(error):
        return error
    said = str(error.orig if isinstance(error, DBAPIError) else error).strip().splitlines()
    why = said[0] if said else "it gave no reason"
    return UnavailableError(f"the grid's database can't be used now ({why}); try again")


def _passes(error: DBAPIError) -> bool:
    """Whether the same step could go well later, without anybody changing the code."""
    return isinstance(error, OperationalError | InterfaceError)
