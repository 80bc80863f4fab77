"""What `memgrid coordinator doctor` finds in a grid that is well, and in one that is not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memgrid.clock import SystemClock
from memgrid.findings import Level
from memgrid_coordinator.cli import app
from memgrid_coordinator.services.examining import examine
from memgrid_coordinator.settings import Settings
from tests.grids import push_model, running_coordinator

Found = dict[str, list[tuple[str, str]]]


async def doctor(data: Path, *words: str) -> tuple[int, Found]:
    """The exit code, and what was found about each thing."""
    arguments = ["doctor", "--data", str(data), "--json", *words]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, catch_exceptions=False)
    found: Found = {}
    for finding in json.loads(result.stdout):
        found.setdefault(finding["about"], []).append((finding["level"], finding["text"]))
    return result.exit_code, found


@pytest.fixture
async def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """The data of a grid that is well; before that, it was examined while it ran."""
    data = tmp_path / "data"
    async with running_coordinator(data) as (coordinator, _):
        await push_model(coordinator, tiny_model_folder)
        code, found = await doctor(data, "--thorough")
        assert code == 0, found
        assert found["service"][0] == (
            "fact",
            f"process {os.getpid()} serves {coordinator.address.url.split('#')[0]}",
        )
        assert found["service"][1][1].startswith("HTTP and gRPC answer")
        secrets = [coordinator.tokens.operator_token, (coordinator.settings.keys / "grid.key").read_bytes().hex()]
        assert not any(secret in json.dumps(found) for secret in secrets)
    return data


async def test_each_thing_that_is_wrong_is_found(folder: Path) -> None:
    code, found = await doctor(folder)
    assert code == 0
    assert found["service"] == [("fact", "no coordinator serves this folder")]

    (folder / "keys").chmod(0o755)
    (folder / "keys" / "grid.key").chmod(0o644)
    assert ("bad", "others on this machine can read grid.key") in (await doctor(folder))[1]["keys"]
    (folder / "keys").chmod(0o700)
    (folder / "keys" / "token.key").unlink()
    assert "missing: token.key" in (await doctor(folder))[1]["keys"][0][1]

    (folder / "endpoint.json").write_text('{"url": "https://127.0.0.1:1", "pid": 1}')
    assert ("warning", "the coordinator ended without saying so") in (await doctor(folder))[1]["service"]

    blob = next(path for path in (folder / "blobs" / "sha256").rglob("*") if path.is_file())
    blob.unlink()
    code, found = await doctor(folder)
    assert code == 1
    assert found["content"][0][0] == "bad"
    assert f"sha256:{blob.name}" in found["content"][0][1]


async def test_a_clock_that_went_back_and_a_broken_schema_are_found(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "memgrid.db")) as connection:
        later = SystemClock().now() + timedelta(hours=2)
        microseconds = int(later.timestamp() * 1_000_000)
        connection.execute(
            "INSERT INTO events (at, name, reason_text, detail) VALUES (?, 'host_enrolled', '', '')", (microseconds,)
        )
        connection.commit()
    found = {finding.about: finding for finding in examine(Settings(data=folder), SystemClock())}
    assert found["clock"].level is Level.BAD
    assert "before the last thing that happened" in found["clock"].text
    with closing(sqlite3.connect(folder / "memgrid.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    code, told = await doctor(folder)
    assert code == 1
    assert told["database"][0][0] == "bad"
    assert "schema 9999 is of a newer memgrid" in told["database"][0][1]


async def test_a_port_that_is_taken_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MEMGRID_HTTP_PORT", str(port))
        _, found = await doctor(folder)
    assert found["ports"][0][0] == "warning"
    assert f"127.0.0.1:{port}" in found["ports"][0][1]
