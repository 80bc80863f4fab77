"""Backups of a grid at work, grids made of them, and what is done about damaged ones."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlmodel import SQLModel
from typer.testing import CliRunner

from memgrid.cube.identity import identity_of_folder
from memgrid.errors import InvalidError, MemgridError
from memgrid.testing import SimulatedGpu
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.cli import app
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.records import Caller, Role
from memgrid_coordinator.services.access import Access
from memgrid_coordinator.services.backups import DamagedBackupError, read_backup
from memgrid_coordinator.services.inviting import Inviting
from memgrid_coordinator.store import copies
from memgrid_coordinator.store.engine import Store
from tests.grids import (
    OPERATOR,
    campaign_of,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
)
from tests.postgres import Postgres

OWNER = Caller(role=Role.OWNER, name="the owner")
TEXT = "The valve opens at three bar and closes at two. " * 4


async def tool(*arguments: str | Path) -> str:
    words = [str(word) for word in arguments]
    result = await asyncio.to_thread(CliRunner().invoke, app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


async def publish(coordinator: Coordinator, endpoint: object, model: Path, name: str) -> str:
    """A campaign from its file to its cube; returns its id."""
    submission = await submit(coordinator, {f"{name}.txt": f"{name}. {TEXT}"}, request_id=name)
    geometry = identity_of_folder(model).geometry
    async with simulated_hosts(endpoint, 2) as hosts:  # type: ignore[arg-type]
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
    assert (await campaign_of(coordinator, submission)).state is CampaignState.COMPLETED
    return submission.campaign.campaign_id


@pytest.fixture
async def busy(tmp_path: Path, tiny_model_folder: Path) -> AsyncIterator[tuple[Coordinator, object]]:
    """A grid with a cube, and somebody who writes into it again and again."""

    async def write(coordinator: Coordinator) -> None:
        while True:
            await Inviting(coordinator.store, coordinator.clock).invite(OWNER, 1)
            await asyncio.sleep(0.01)  # leaves the processor to the others

    async with running_coordinator(tmp_path / "data") as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        await publish(coordinator, endpoint, tiny_model_folder, "first")
        writing = asyncio.create_task(write(coordinator))
        yield coordinator, endpoint
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_a_grid_is_backed_up_at_work_and_goes_on_elsewhere(
    busy: tuple[Coordinator, object], tmp_path: Path, tiny_model_folder: Path
) -> None:
    coordinator, endpoint = busy
    data, target, elsewhere = coordinator.settings.data, tmp_path / "backup", tmp_path / "elsewhere"
    await tool("backup", target, "--data", data)
    first = read_backup(target)
    campaign_id = await publish(coordinator, endpoint, tiny_model_folder, "second")
    told = await tool("backup", target, "--data", data)
    second = read_backup(target)
    assert second.rows["campaigns"] == first.rows["campaigns"] + 1 == 2
    assert second.blobs > first.blobs
    assert len(list(target.glob("memgrid-*.db"))) == 1, "the database of the earlier backup is gone"
    assert f"{second.blobs} files of content" in told
    assert (target.stat().st_mode | (target / "keys" / "grid.key").stat().st_mode) & 0o077 == 0
    assert "backup" in [act.action for act in await Access(coordinator.store, coordinator.clock).acts(OWNER, 10_000)]

    await tool("restore", target, "--data", elsewhere)
    with pytest.raises(InvalidError, match="a grid is never written over"):
        await tool("restore", target, "--data", elsewhere)
    async with running_coordinator(elsewhere) as (again, _):
        assert again.grid_key.public_key == coordinator.grid_key.public_key
        assert again.certificate.fingerprint == coordinator.certificate.fingerprint
        assert again.tokens.operator_token == coordinator.tokens.operator_token
        restored = await again.campaigns.get(OPERATOR, campaign_id)
        original = await coordinator.campaigns.get(OPERATOR, campaign_id)
        assert restored.documents == original.documents
        name, _, version = restored.documents[0].cube.rpartition(":")
        manifest = await again.publishing.find_manifest(OPERATOR, name, version)
        assert manifest == await coordinator.publishing.find_manifest(OPERATOR, name, version)
        await submit(again, {"third.txt": f"third. {TEXT}"}, request_id="third")


async def test_a_damaged_backup_is_not_restored(busy: tuple[Coordinator, object], tmp_path: Path) -> None:
    coordinator, _ = busy
    data, target, elsewhere = coordinator.settings.data, tmp_path / "backup", tmp_path / "elsewhere"
    await tool("backup", target, "--data", data)
    assert "is whole" in await tool("restore", target, "--check")
    backup = read_backup(target)
    blob = next(path for path in (target / "blobs").rglob("*") if path.is_file())
    for path in (target / backup.database_name, target / "keys" / "grid.key", target / "blobs.txt", blob):
        content = path.read_bytes()
        path.unlink()  # the grid's own file may be the same one
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedBackupError, match=path.name):
            await tool("restore", target, "--data", elsewhere)
        assert not elsewhere.exists()
        path.write_bytes(content)
    blob.unlink()
    with pytest.raises(DamagedBackupError, match="the file is gone"):
        await tool("restore", target, "--check")
    (target / "backup.json").unlink()
    with pytest.raises(InvalidError, match="not a backup, or one that was cut off"):
        await tool("restore", target, "--check")


async def test_a_backup_goes_where_nothing_else_is(busy: tuple[Coordinator, object], tmp_path: Path) -> None:
    coordinator, _ = busy
    data = coordinator.settings.data
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("Dear")
    with pytest.raises(InvalidError, match=r"found 'one\.txt' in it"):
        await tool("backup", tmp_path / "letters", "--data", data)
    with pytest.raises(InvalidError, match="outside of the data folder"):
        await tool("backup", data / "backup", "--data", data)
    await tool("backup", tmp_path / "listed", "--data", data, "--no-content")
    assert not (tmp_path / "listed" / "blobs").exists()
    assert "listed only" in await tool("restore", tmp_path / "listed", "--check")
    with pytest.raises(MemgridError, match="no grid's database in it"):
        await tool("backup", tmp_path / "other", "--data", tmp_path / "listed")


async def test_a_backup_moves_a_grid_to_postgresql_and_back(
    busy: tuple[Coordinator, object], tmp_path: Path, postgres: Postgres
) -> None:
    coordinator, _ = busy
    target, url = tmp_path / "backup", postgres.empty_database()
    await tool("backup", target, "--data", coordinator.settings.data, "--no-content")
    await tool("restore", target, "--data", tmp_path / "moved", "--database", url)
    assert not (tmp_path / "moved" / "memgrid.db").exists()
    with pytest.raises(InvalidError, match="expected an empty database"):
        await tool("restore", target, "--data", tmp_path / "twice", "--database", url)
    await asyncio.to_thread(copies.snapshot, url, tmp_path / "back.db")
    assert rows_in(tmp_path / "back.db") == rows_in(target / read_backup(target).database_name)

    store = Store(url)
    try:
        acts = len(await Access(store, coordinator.clock).acts(OWNER, 100_000))
        await Inviting(store, coordinator.clock).invite(OWNER, 1)
        assert len(await Access(store, coordinator.clock).acts(OWNER, 100_000)) == acts + 1, "numbers go on"
    finally:
        store.close()


def rows_in(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything in a SQLite file, table by table."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table.name: sorted(
                connection.execute(f"SELECT {', '.join(column.name for column in table.columns)} FROM {table.name}"),
                key=repr,
            )
            for table in SQLModel.metadata.sorted_tables
        }


def test_a_schema_is_migrated_once(tmp_path: Path) -> None:
    runner = CliRunner()
    with closing(sqlite3.connect(tmp_path / "memgrid.db")):
        pass
    words = ["migrate", "--data", str(tmp_path)]
    (tmp_path / "memgrid.db").touch()
    behind = runner.invoke(app, [*words, "--check"])
    assert behind.exit_code == 1
    assert behind.stdout.startswith("0001 ")
    assert "was brought from nothing to" in runner.invoke(app, words).stdout
    assert "is up to date" in runner.invoke(app, [*words, "--check"]).stdout
