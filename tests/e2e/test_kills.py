"""Power cuts: processes are killed again and again, and nothing that was promised is lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from tests.e2e.kills import check_books, cubes_of, storm, wait_for_end
from tests.e2e.processes import grid_of_processes

SEED = 20_26
DOCUMENTS = 4
LEASE_S = 8.0
SENTENCES = [
    "The valve opens at three bar.",
    "Volunteers compute, the coordinator checks.",
    "Two replicas agree and one of them uploads.",
    "A lease ends at its deadline.",
]


def write_campaign(folder: Path, model: Path) -> Path:
    """Documents of some hundreds of tokens, in chunks small enough that there is always something half done."""
    folder.mkdir()
    words = random.Random(SEED)
    for number in range(DOCUMENTS):
        text = " ".join(f"{words.choice(SENTENCES)} Entry {words.randrange(10**6)}." for _ in range(32))
        (folder / f"manual-{number}.txt").write_text(text[:1100])
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


@pytest.fixture(scope="module")
def campaign_file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return write_campaign(tmp_path_factory.mktemp("campaign") / "sources", tiny_model_folder)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, campaign_file: Path, warm_environment: dict[str, str]
) -> dict[str, str]:
    """The cubes of a run that nobody disturbed, by document."""
    folder = tmp_path_factory.mktemp("calm")
    with grid_of_processes(folder, 2, warm_environment=warm_environment) as calm:
        campaign_id = calm.ask("campaign", "submit", str(campaign_file))["campaign_id"]
        ended = wait_for_end(calm, campaign_id, 200)
        check_books(calm)
    assert ended["state"] == "completed"
    return cubes_of(ended)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [8, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_kills_change_nothing(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    campaign_file: Path,
    undisturbed: dict[str, str],
    warm_environment: dict[str, str],
    kind: str,
    kills: int,
) -> None:
    """The cubes after so many kills are the cubes of an undisturbed run, byte for byte.

    On PostgreSQL two coordinators share the work, and both are killed.
    """
    shared = kind == "postgresql"
    with grid_of_processes(
        tmp_path,
        3,
        lease_shortest_s=LEASE_S,
        warm_environment=warm_environment,
        database=request.getfixturevalue("postgres").empty_database() if shared else None,
        coordinators=2 if shared else 1,
    ) as grid:
        submitted = grid.ask("campaign", "submit", str(campaign_file))
        killed, accepted = storm(grid, random.Random(SEED), kills=kills, units_between=(1, 3))
        assert 0 < accepted < submitted["units"], "the killing fell beside the campaign"
        survived = wait_for_end(grid, submitted["campaign_id"], 200)
    assert {*grid.coordinators, *grid.volunteers} == set(killed)
    assert survived["state"] == "completed"
    assert cubes_of(survived) == undisturbed
    check_books(grid)
