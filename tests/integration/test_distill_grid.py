"""Real volunteers with real workers distil tiny documents, against the real coordinator, to published cubes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memgrid.cube.manifest import CubeManifest, Parent
from memgrid.distill.state import read_state
from memgrid.specs import TrainSpec, parse_spec
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.policy.manifests import parse_manifest
from memgrid_coordinator.progress import Stage
from memgrid_coordinator.store import campaigns, events
from tests.distilling import TEXT, distill, distilling, rounds
from tests.grids import push_model, running_coordinator, submit
from tests.integration.test_worker_grid import HONEST, finished, volunteers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def import_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


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


async def test_rounds_of_three_members_become_a_cube(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, hosts=3, parameters=rounds()) as grid:
        document = await grid.finish()
        assert document.cube == "handbook/manual:1.0.0", document.reason
        assert (document.progress.steps, document.progress.stage) == (4, Stage.PUBLISH)
        assert [step for step, _ in document.progress.losses] == [0, 1, 2, 3]
        trained = await grid.units("train")
        assert len(trained) == 6
        made = await grid.coordinator.store.read(lambda connection: campaigns.made_of(connection, 1))
        merged = json.loads(made["merge/0001"].detail)
        assert set(merged["used"]) == {unit.key for unit in trained[:3]}
        assert len(merged["agreements"]) == 3
        for name in ("start", "merge/0001", "merge/0002"):
            assert not read_state(grid.coordinator.blobs.path_of(made[name].digest)).has_moments, name
        for unit in trained:
            assert unit.output_digest is not None
            assert not read_state(grid.coordinator.blobs.path_of(unit.output_digest)).has_moments
        assert {"velocity/0001", "velocity/0002"} <= set(made)
        assert await story(grid.coordinator, grid.submission) != []


async def test_documents_are_trained_beside_their_siblings_and_beside_named_cubes(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    async with distilling(tmp_path, tiny_model_folder) as grid:
        first = await grid.finish()
        assert first.cube_digest is not None
        texts = {"second.txt": f"Second. {TEXT}", "third.txt": f"Third. {TEXT}"}
        beside = {"siblings": True, "distractors": ["handbook/manual:1.0.0"], "distractor_share": 1.0}
        grid.submission = await submit(
            grid.coordinator,
            texts,
            request_id="second",
            recipe="distill",
            distill=distill(train=beside),
            publish={"namespace": "manuals", "version": "2.0.0", "licence": "CC0-1.0"},
        )
        await grid.finish()
        campaign = await grid.campaign()
        assert campaign.state is CampaignState.COMPLETED, [document.reason for document in campaign.documents]
        made = [
            await grid.coordinator.store.read(
                lambda connection, document_id=document.document_id: campaigns.made_of(connection, document_id)
            )
            for document in campaign.documents
        ]
        specs = [parse_spec(unit.spec) for unit in await grid.units("train")]
        named = made[0]["distractor/0000"].digest
        assert {spec.distractors for spec in specs if isinstance(spec, TrainSpec)} == {
            (named, made[1]["start-adapter"].digest)
        }
        cube = await grid.coordinator.publishing.resolve("manuals/second:2.0.0")
        manifest = CubeManifest.from_bytes(
            grid.coordinator.blobs.read_bytes(parse_manifest(cube.content, cube.media_type).blobs[0].digest)
        )
        assert manifest.lineage == (Parent(cube=first.cube_digest, operation="distractor"),)


async def test_low_rank_weights_go_the_same_way(tmp_path: Path, tiny_model_folder: Path) -> None:
    lora = distill(adapter={"kind": "lora", "rank": 2, "targets": ["q_proj", "v_proj"]})
    del lora["adapter"]["virtual_tokens"]
    async with distilling(tmp_path, tiny_model_folder, parameters=lora) as grid:
        document = await grid.finish()
        assert document.cube == "handbook/manual:1.0.0", document.reason
        found = await grid.coordinator.publishing.search("valve", kind="parameter")
        assert [cube.repository for cube in found] == ["handbook/manual"], "a cube is found by what it is about"
