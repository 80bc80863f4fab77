"""Power cuts inside a distillation: no acknowledged step is lost, and the cube is the undisturbed run's."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.processes import Grid, grid_of_processes
from tests.e2e.test_kills import check_books, cubes_of, wait_for_end, wait_for_progress

KILLS = 20
LEASE_S = 40.0
"""Whoever was killed goes on with what it held: there is time to come back."""
SEED = 20_27
SENTENCES = [
    "The valve opens at three bar.",
    "Volunteers train, the coordinator replays.",
    "Three members make a round and the grid merges them.",
    "A state goes on to whoever takes the next steps.",
]
RELAY = {"steps": 8, "steps_per_unit": 1, "segment_steps": 1}
ROUNDS = {
    "steps": 6,
    "segment_steps": 1,
    "mode": "rounds",
    # Whoever is killed is waited for: else what is merged would depend on the hour.
    "rounds": {"members": 3, "local_steps": 2, "enough": 1.0, "wait_s": 0},
}


def write_campaign(folder: Path, model: Path, train: dict[str, Any]) -> Path:
    """Two short documents, in units small enough that there is always something half done."""
    folder.mkdir()
    words = random.Random(SEED)
    for number in range(2):
        text = " ".join(f"{words.choice(SENTENCES)} Entry {words.randrange(10**6)}." for _ in range(16))
        (folder / f"manual-{number}.txt").write_text(text)
    campaign = {
        "name": "manuals",
        "model": str(model),
        "recipe": "distill",
        "sources": [{"path": "*.txt", "licence": "CC0-1.0"}],
        "distill": {
            "adapter": {"kind": "prefix", "virtual_tokens": 8},
            "study": {
                "chunk_tokens": 1024,
                "conversations": 12,
                "held_out": 4,
                "conversations_per_unit": 2,
                "question_tokens": 8,
                "answer_tokens": 8,
                "top_k": 8,
                "temperature": 1.0,
            },
            "train": {"batch_rows": 2, "row_tokens": 64, **train},
            "quality": {"min_gap_closed": -10},
            "items_per_evaluation": 2,
            "compute_dtype": "float32",
        },
        "publish": {"namespace": "manuals", "version": "1.0.0", "licence": "CC0-1.0"},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(campaign))
    return path


def steps_in_order(data: Path) -> None:
    """Every state was trained from the one before it: of each document, no stretch is missing and none came twice."""
    with sqlite3.connect(data / "memgrid.db") as database:
        made = database.execute("SELECT document_id, count(*), count(DISTINCT name) FROM document_blobs GROUP BY 1")
        for _, blobs, names in made:
            assert blobs == names
        trained = "SELECT count(*) FROM units WHERE kind = 'train' AND state <> 'accepted'"
        assert database.execute(trained).fetchone()[0] == 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("train", [RELAY, ROUNDS], ids=["relay", "rounds"])
def test_twenty_kills_change_no_bit_of_a_trained_cube(
    tmp_path: Path, tiny_model_folder: Path, train: dict[str, Any]
) -> None:
    """The cubes after twenty kills are the cubes of an undisturbed run, byte for byte."""
    campaign_file = write_campaign(tmp_path / "sources", tiny_model_folder, train)
    with grid_of_processes(tmp_path / "calm", 2, lease_shortest_s=LEASE_S) as calm:
        campaign_id = calm.ask("campaign", "submit", str(campaign_file))["campaign_id"]
        undisturbed = wait_for_end(calm, campaign_id, 500)
    assert undisturbed["state"] == "completed", undisturbed

    chance = random.Random(SEED)
    with grid_of_processes(tmp_path / "stormy", 3, lease_shortest_s=LEASE_S) as grid:
        campaign_id = grid.ask("campaign", "submit", str(campaign_file))["campaign_id"]
        killed, accepted = _kill(grid, chance)
        assert 0 < accepted[-1] < undisturbed["units"], "the killing fell beside the campaign"
        survived = wait_for_end(grid, campaign_id, 700)
    assert {"coordinator", *grid.volunteers} == set(killed)
    assert survived["state"] == "completed", survived
    assert cubes_of(survived) == cubes_of(undisturbed)
    for data in (grid.data, calm.data):
        check_books(data, replicas=1)
        steps_in_order(data)


def _kill(grid: Grid, chance: random.Random) -> tuple[list[str], list[int]]:
    """Twenty kills at moments nobody chose, each after some progress or a while without."""
    killed: list[str] = []
    accepted = [0]
    while len(killed) < KILLS:
        accepted.append(wait_for_progress(grid, accepted[-1] + chance.randint(0, 2), limit_s=25))
        time.sleep(chance.uniform(0, 0.5))
        name = chance.choice(["coordinator", *grid.volunteers])
        grid.kill(name)
        grid.restart(name)
        killed.append(name)
    return killed, accepted
