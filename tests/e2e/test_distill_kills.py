"""Power cuts inside a distillation: no acknowledged step is lost, and the cube is the undisturbed run's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.kills import Books, check_books, check_stages, cubes_of, storm, wait_for_end
from tests.e2e.processes import grid_of_processes

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
TRAIN = {"relay": RELAY, "rounds": ROUNDS}


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


@pytest.fixture(scope="module")
def campaign_files(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("campaigns")
    return {name: write_campaign(folder / name, tiny_model_folder, train) for name, train in TRAIN.items()}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, campaign_files: dict[str, Path], warm_environment: dict[str, str]
) -> dict[str, dict[str, str]]:
    """The cubes of runs that nobody disturbed, by document."""
    folder = tmp_path_factory.mktemp("calm")
    with grid_of_processes(folder, 2, lease_shortest_s=LEASE_S, warm_environment=warm_environment) as calm:
        asked = {
            name: calm.ask("campaign", "submit", str(path))["campaign_id"] for name, path in campaign_files.items()
        }
        ended = {name: wait_for_end(calm, campaign_id, 300) for name, campaign_id in asked.items()}
        check_books(calm, replicas=1)
        check_stages(calm)
    assert {one["state"] for one in ended.values()} == {"completed"}, ended
    return {name: cubes_of(one) for name, one in ended.items()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("train", "kills", "units_between"),
    [("relay", 4, (0, 2)), pytest.param("relay", 20, (0, 2), marks=pytest.mark.slow), ("rounds", 5, (1, 3))],
)
def test_kills_change_no_bit_of_a_trained_cube(
    tmp_path: Path,
    campaign_files: dict[str, Path],
    undisturbed: dict[str, dict[str, str]],
    warm_environment: dict[str, str],
    train: str,
    kills: int,
    units_between: tuple[int, int],
) -> None:
    """The cubes after so many kills are the cubes of an undisturbed run, byte for byte."""
    with grid_of_processes(tmp_path, 3, lease_shortest_s=LEASE_S, warm_environment=warm_environment) as grid:
        submitted = grid.ask("campaign", "submit", str(campaign_files[train]))
        killed, accepted = storm(grid, random.Random(SEED), kills=kills, units_between=units_between)
        with Books(grid.database) as books:
            running = books.value("SELECT state FROM campaigns") == "running"
        assert accepted > 0 and running, "the killing fell beside the campaign"
        survived = wait_for_end(grid, submitted["campaign_id"], 300)
    assert {"coordinator", *grid.volunteers} == set(killed)
    assert survived["state"] == "completed", survived
    assert cubes_of(survived) == undisturbed[train]
    check_books(grid, replicas=1)
    check_stages(grid)
