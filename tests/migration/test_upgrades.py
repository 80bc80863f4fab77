"""Upgrades from every released schema, with something in every table: nothing is lost on the way."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Boolean, Engine, LargeBinary, MetaData, Table, insert, inspect, select, text

from memgrid.digest import Digest
from memgrid.errors import InvalidError
from memgrid.units import HostId, LeaseId
from memgrid_coordinator.progress import Progress
from memgrid_coordinator.records import CampaignId
from memgrid_coordinator.store import campaigns, leases, units, uploads
from memgrid_coordinator.store.dialects import open_engine
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.upgrading import alembic_config, migrate, version_of, versions
from tests.postgres import Postgres

FACTS = '[3, 7200.5, "cpu", "x", "float32", "2"]'


@pytest.mark.parametrize("version", versions()[:-1])
def test_every_row_of_a_former_release_survives(empty_database: str, version: str) -> None:
    command.upgrade(alembic_config(empty_database), version)
    engine = open_engine(empty_database)
    before = _fill(engine)
    assert len(before) >= 15
    engine.dispose()

    migrate(empty_database)

    assert version_of(engine) == versions()[-1]
    after = _read(engine)
    for name, row in before.items():
        assert name in after, f"{name}: the table is gone"
        kept = {column: after[name].get(column) for column in row}
        if name == "leases":  # summed up from what was told, once there is a column for it
            assert kept.pop("compute_s", 7200.5) in (7200.5, row.get("compute_s"))
            row.pop("compute_s", None)
        assert kept == row, name
    engine.dispose()


def test_two_coordinators_that_start_at_once_upgrade_once(postgres: Postgres) -> None:
    """Each in a process of its own: Alembic's context is one a process."""
    url = postgres.empty_database()
    ask = "import sys; from memgrid_coordinator.store.upgrading import migrate; migrate(sys.argv[1])"
    both = [subprocess.Popen([sys.executable, "-c", ask, url]) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    engine = open_engine(url)
    assert version_of(engine) == versions()[-1]
    engine.dispose()


def test_a_schema_of_a_newer_release_is_refused(empty_database: str) -> None:
    migrate(empty_database)
    engine = open_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(InvalidError, match="its schema 9999 is newer than this release"):
        migrate(empty_database)


def _fill(engine: Engine) -> dict[str, dict[str, Any]]:
    """One row in every table, parents first, all columns set; returns them by table."""
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            if table.name != "alembic_version":
                connection.execute(insert(table).values(_row(table)))
    return _read(engine)


def _row(table: Table) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.name == "parent_id":
            continue  # a unit that continues none
        if isinstance(column.type, LargeBinary):
            row[column.name] = b"\x00bytes"
        elif column.type.python_type is str:
            row[column.name] = {"facts": FACTS, "state": "running"}.get(column.name, "one")
        elif isinstance(column.type, Boolean):
            row[column.name] = True
        else:
            row[column.name] = column.type.python_type(1)
    if table.name == "uploads":
        row["name"] = "kv.safetensors"
    return row


def _read(engine: Engine) -> dict[str, dict[str, Any]]:
    metadata = MetaData()
    metadata.reflect(engine)
    found: dict[str, dict[str, Any]] = {}
    with engine.connect() as connection:
        for table in metadata.tables.values():
            rows = connection.execute(select(table)).mappings().all()
            if rows and table.name != "alembic_version":
                once = 2 if table.name == "credit_days" else 1  # summed up by day and for all time
                assert len(rows) in (1, once), f"{table.name}: a row was doubled"
                found[table.name] = dict(rows[0])
    return found


def test_a_grid_of_the_first_release_goes_on(empty_database: str) -> None:
    command.upgrade(alembic_config(empty_database), "0001")
    engine = open_engine(empty_database)
    with engine.begin() as connection:
        for statement in _FORMER.strip().splitlines():
            connection.execute(text(_bytes_in(statement, engine)))
    engine.dispose()
    store = Store(empty_database)
    with store.engine.connect() as connection:
        lease = leases.by_id(connection, [LeaseId("l")])[LeaseId("l")]
        assert lease.facts is not None and lease.facts.compute_s == 7200.5
        assert round(campaigns.device_hours(connection, CampaignId("c")), 6) == round(7200.5 / 3600, 6)
        assert uploads.ordered_from(connection, HostId("h"))[0].name == "kv.safetensors"
        (document,) = campaigns.documents_of(connection, CampaignId("c"))
        assert (document.name, document.progress) == ("d", Progress())
        assert campaigns.get(connection, CampaignId("c")).recipe == "activation"
        assert units.by_id(connection, [1])[1].output_digest == Digest("sha256:" + "0" * 64)
        assert inspect(connection).get_pk_constraint("uploads")["constrained_columns"] == ["lease_id", "name"]
    store.close()
    command.downgrade(alembic_config(empty_database), "0001")
    command.upgrade(alembic_config(empty_database), "head")
    engine = open_engine(empty_database)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT name FROM uploads")).scalars().all() == ["kv.safetensors"]
    engine.dispose()


def _bytes_in(statement: str, engine: Engine) -> str:
    return statement if engine.dialect.name == "sqlite" else statement.replace("x'00'", r"'\x00'::bytea")


_DIGEST = "sha256:" + "0" * 64
_FORMER = f"""
INSERT INTO accounts VALUES ('a', x'00', 0)
INSERT INTO hosts VALUES ('h', 'a', 'l', '', NULL, 0, 1.0, 0, NULL, 0, 0)
INSERT INTO campaigns VALUES ('c', 'r', 'n', 'running', 'm', '{{}}', 0, 0, NULL)
INSERT INTO documents VALUES (1, 'c', 'd', 'running', '', '{_DIGEST}', '', 1, '', NULL, NULL, '')
INSERT INTO units (unit_id, key, kind, state, spec, model, tokens_digest, token_count, flops, priority, min_replicas, max_replicas, vacancies, fence, failures, output_digest, output_bytes) VALUES (1, 'k', 'prefill', 'checking', x'00', '{_DIGEST}', '{_DIGEST}', 1, 1, 0, 2, 5, 0, 1, 0, '{_DIGEST}', 1)
INSERT INTO document_units VALUES (1, 0, 1)
INSERT INTO leases (lease_id, unit_id, host_id, account_id, fence, state, granted_at, deadline_at, outputs, sketch, facts, reason_text) VALUES ('l', 1, 'h', 'a', 1, 'agreed', 0, 0, '[]', x'00', '[3, 7200.5, "cpu", "x", "float32", "2"]', '')
INSERT INTO uploads VALUES ('l', 'h', 1, 'kv.safetensors', '{_DIGEST}', 1, 'ordered', 0)
"""  # noqa: E501
