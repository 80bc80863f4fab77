"""Every kind of database, new and without any table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'memgrid.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.empty_database()
