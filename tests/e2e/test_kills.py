"""Power cuts: processes are killed again and again, and nothing that was promised is lost."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.processes import Grid, grid_of_processes

KILLS = 20
SEED = 20_26
DOCUMENTS = 6
UNITS_AT_LEAST = 200
SENTENCES = [
    "The valve opens at three bar.",
    "Volunteers compute, the coordinator checks.",
    "Two replicas agree and one of them uploads.",
    "A lease ends at its deadline.",
]


def write_campaign(folder: Path, model: Path) -> Path:
    """Six documents of about 1,500 tokens, in chunks small enough that there is always something half done."""
    folder.mkdir()
    words = random.Random(SEED)
    for number in range(DOCUMENTS):
        text = " ".join(f"{words.choice(SENTENCES)} Entry {words.randrange(10**6)}." for _ in range(70))
        (folder / f"manual-{number}.txt").write_text(text[:2600])
    campaign = {
        "name": "manuals",
        "model": str(model),
        "recipe": "activation",
        "sources": [{"path": "*.txt", "licence": "CC0-1.0"}],
        "activation": {"chunk_tokens": 32, "wrap": "plain", "compute_dtype": "float32"},
        "publish": {"namespace": "manuals", "version": "1.0.0", "licence": "CC0-1.0"},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(campaign))
    return path


def wait_for_end(grid: Grid, campaign_id: str, limit_s: float) -> dict[str, Any]:
    until = time.monotonic() + limit_s
    while True:
        campaign: dict[str, Any] = grid.ask("campaign", "status", campaign_id)
        if campaign["state"] != "running":
            return campaign
        if time.monotonic() > until:
            tails = "\n".join(f"== {name}\n{grid.log(name)[-1500:]}" for name in ("coordinator", *grid.volunteers))
            raise TimeoutError(f"still running: {campaign}\n{tails}")
        time.sleep(0.5)


def wait_for_progress(grid: Grid, units: int, limit_s: float) -> int:
    """Until so many units are accepted, or for a while: how many there are then."""
    until = time.monotonic() + limit_s
    while True:
        with sqlite3.connect(f"file:{grid.data / 'memgrid.db'}?mode=ro", uri=True) as database:
            found: int = database.execute("SELECT count(*) FROM units WHERE state = 'accepted'").fetchone()[0]
        if found >= units or time.monotonic() > until:
            return found
        time.sleep(0.02)


def cubes_of(campaign: dict[str, Any]) -> dict[str, str]:
    return {document["name"]: document["cube_digest"] for document in campaign["documents"]}


def check_books(data: Path, replicas: int = 2) -> None:
    """What must be true of the tables whatever happened: nothing accepted twice, nobody paid twice or for nothing."""
    with sqlite3.connect(data / "memgrid.db") as database:

        def count(query: str) -> int:
            found: int = database.execute(query).fetchone()[0]
            return found

        units = count("SELECT count(*) FROM units")
        assert count("SELECT count(*) FROM units WHERE state = 'accepted'") == units > 0
        assert count("SELECT count(*) FROM events WHERE name = 'unit_accepted'") == units
        assert count("SELECT count(DISTINCT unit_id) FROM events WHERE name = 'unit_accepted'") == units
        agreed = count("SELECT count(*) FROM leases WHERE state = 'agreed'")
        assert count("SELECT count(*) FROM credits") == agreed >= replicas * units
        paid_for_nothing = "SELECT count(*) FROM credits JOIN leases USING (lease_id) WHERE leases.state <> 'agreed'"
        assert count(paid_for_nothing) == 0
        one_account_twice = (
            """SELECT count(*) FROM (SELECT 1 FROM credits GROUP BY unit_id, account_id HAVING count(*) > 1)"""
        )
        assert count(one_account_twice) == 0
        assert count("SELECT count(*) FROM leases WHERE state = 'rejected'") == 0, "an honest host was rejected"
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_change_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    """The cubes after twenty kills are the cubes of an undisturbed run, byte for byte."""
    campaign_file = write_campaign(tmp_path / "sources", tiny_model_folder)
    with grid_of_processes(tmp_path / "calm", 2) as calm:
        campaign_id = calm.ask("campaign", "submit", str(campaign_file))["campaign_id"]
        undisturbed = wait_for_end(calm, campaign_id, 200)
    assert undisturbed["state"] == "completed"

    chance = random.Random(SEED)
    with grid_of_processes(tmp_path / "stormy", 3) as grid:
        campaign_id = grid.ask("campaign", "submit", str(campaign_file))["campaign_id"]
        killed: list[str] = []
        accepted = [0]
        while len(killed) < KILLS:
            accepted.append(wait_for_progress(grid, accepted[-1] + chance.randint(1, 8), limit_s=20))
            time.sleep(chance.uniform(0, 0.3))  # a moment nobody chose
            name = chance.choice(["coordinator", *grid.volunteers])
            grid.kill(name)
            grid.restart(name)
            killed.append(name)
        assert 0 < accepted[-1] < UNITS_AT_LEAST, "the killing fell beside the campaign"
        survived = wait_for_end(grid, campaign_id, 300)
    assert {"coordinator", *grid.volunteers} == set(killed)
    assert survived["state"] == "completed"
    assert cubes_of(survived) == cubes_of(undisturbed)
    check_books(grid.data)
    check_books(calm.data)
