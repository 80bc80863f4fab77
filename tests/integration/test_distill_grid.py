"""Real volunteers with real workers distil tiny documents, against the real coordinator, to published cubes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.progress import Stage
from memgrid_coordinator.store import events
from tests.grids import push_model, running_coordinator, submit
from tests.integration.test_worker_grid import HONEST, finished, volunteers

ROOT = Path(__file__).resolve().parents[2]
TEXT = " ".join(f"Valve {number} opens at {number * 7 % 11} bar; see page {number * 13}." for number in range(12))
DISTILL: dict[str, Any] = {
    "adapter": {"kind": "prefix", "virtual_tokens": 8},
    "study": {
        "chunk_tokens": 1024,
        "conversations": 8,
        "held_out": 4,
        "conversations_per_unit": 4,
        "question_tokens": 8,
        "answer_tokens": 8,
        "top_k": 8,
        "temperature": 1.0,
    },
    "train": {"steps": 6, "batch_rows": 2, "row_tokens": 64, "steps_per_unit": 3, "segment_steps": 2},
    "quality": {"min_gap_closed": -10},
    "items_per_evaluation": 3,
    "compute_dtype": "float32",
}


@pytest.fixture(autouse=True)
def import_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def distill(**changed: Any) -> dict[str, Any]:
    """The parameters of a tiny campaign; keywords change parts of them."""
    return {
        name: {**part, **changed.get(name, {})} if isinstance(part, dict) else part for name, part in DISTILL.items()
    }


async def story(coordinator: Coordinator, submission: Any) -> list[str]:
    """What happened to the campaign, in order."""
    campaign_id = submission.campaign.campaign_id
    found = await coordinator.store.read(lambda connection: events.of_campaign(connection, campaign_id))
    return [f"{event.name} {event.detail}" for event in found]


async def test_a_relay_of_two_volunteers_becomes_a_cube(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with running_coordinator(tmp_path / "data") as (coordinator, _):
        await push_model(coordinator, tiny_model_folder)
        submission = await submit(coordinator, {"manual.txt": TEXT}, recipe="distill", distill=distill())
        async with volunteers(coordinator, tmp_path, {"attic": HONEST, "cellar": HONEST}):
            campaign = await finished(coordinator, submission)
        assert campaign.state is CampaignState.COMPLETED, await story(coordinator, submission)
        (document,) = campaign.documents
        assert document.cube == "handbook/manual:1.0.0"
        progress = document.progress
        assert (progress.stage, progress.steps, progress.steps_total) == (Stage.PUBLISH, 6, 6)
        assert [step for step, _ in progress.losses] == list(range(6))
        assert progress.quality is not None
        assert progress.quality.items == 4
        assert set(campaign.units_by_state) == {"accepted"}
        assert campaign.device_hours > 0
