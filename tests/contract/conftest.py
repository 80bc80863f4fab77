"""Every store there is: what is promised must hold on each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memgrid.units import AccountId, HostId
from memgrid_coordinator.records import Host
from memgrid_coordinator.store.engine import Store
from tests.postgres import Postgres


def a_host(account: str, network: str = "") -> Host:
    """A host of some account, as the dispatcher sees it."""
    return Host(
        host_id=HostId(f"host of {account}"),
        account_id=AccountId(account),
        public_key=b"",
        label="host",
        session_id=None,
        sequence=0,
        flops_per_s=1e9,
        recent_faults=0,
        suspended_until=None,
        network=network,
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'memgrid.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def empty_store(database: str) -> AsyncIterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'memgrid.db'}")
    yield opened
    opened.close()
