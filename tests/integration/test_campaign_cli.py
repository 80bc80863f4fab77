"""`memgrid campaign | model | explain` as operators run them: output, JSON, exit codes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint
from memgrid.testing import SimulatedGpu
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.records import Submission
from tests.grids import OPERATOR, run_until_ended, running_coordinator, simulated_hosts
from tests.integration.test_pool_cli import Shell

SMALL_DISTILLATION = {
    "adapter": {"kind": "prefix", "virtual_tokens": 8},
    "study": {
        "conversations": 8,
        "held_out": 4,
        "conversations_per_unit": 2,
        "question_tokens": 8,
        "answer_tokens": 8,
    },
    "train": {"steps": 6, "steps_per_unit": 2, "segment_steps": 1, "row_tokens": 64},
    "items_per_evaluation": 2,
}
TEXT = "The valve opens at three bar and closes at two. " * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """An operator's desk: a shell with grid and token, a folder with sources, and the grid behind it."""

    shell: Shell
    folder: Path
    coordinator: Coordinator
    endpoint: GridEndpoint
    model: Path

    def write_campaign(self, **changed: Any) -> str:
        """A campaign over every text of the folder with a model that is still a folder here; its path."""
        value = {
            "name": "handbook",
            "model": str(self.model),
            "recipe": "activation",
            "sources": [{"path": "texts/*.md"}],
            "activation": {"chunk_tokens": 32, "wrap": "plain"},
            "publish": {"namespace": "handbook", "version": "1.0.0", "licence": "CC-BY-4.0"},
        }
        path = self.folder / "campaign.yaml"
        path.write_text(json.dumps({**value, **changed}))
        return str(path)

    async def compute(self, campaign_id: str, biases: list[float]) -> None:
        """Volunteers until the campaign has ended: one for each bias, a model that is wrong by so much."""
        geometry = identity_of_folder(self.model).geometry
        campaign = await self.coordinator.campaigns.get(OPERATOR, campaign_id)
        submission = Submission(campaign=campaign, units_reused=0)
        async with simulated_hosts(self.endpoint, len(biases)) as hosts:
            gpus = [SimulatedGpu(geometry, bias=bias, seed=number) for number, bias in enumerate(biases)]
            await run_until_ended(self.coordinator, submission, dict(zip(hosts, gpus, strict=True)))


@pytest.fixture
async def desk(tmp_path: Path, tiny_model_folder: Path) -> AsyncIterator[Desk]:
    (tmp_path / "texts").mkdir()
    for name in ("one.md", "two.md"):
        (tmp_path / "texts" / name).write_text(f"{name}: {TEXT}")
    async with running_coordinator(tmp_path / "data") as (coordinator, endpoint):
        shell = Shell(tmp_path, coordinator.address.url)
        shell.environment["MEMGRID_TOKEN"] = f"@{tmp_path / 'data' / 'keys' / 'operator.token'}"
        yield Desk(shell=shell, folder=tmp_path, coordinator=coordinator, endpoint=endpoint, model=tiny_model_folder)


async def test_a_campaign_is_submitted_watched_and_published(desk: Desk) -> None:
    submitted = await desk.shell.json("campaign", "submit", desk.write_campaign())
    assert submitted["state"] == "running"
    assert [document["name"] for document in submitted["documents"]] == ["one", "two"]
    watching = asyncio.create_task(desk.shell.run("campaign", "watch", submitted["campaign_id"][:8]))
    await desk.compute(submitted["campaign_id"], biases=[0.0, 0.0])
    code, output, errors = await watching
    assert code == 0, errors
    assert "published handbook/one:1.0.0" in output
    assert output.splitlines()[-1].startswith("handbook completed")
    listed = await desk.shell.json("campaign", "list")
    assert [campaign["state"] for campaign in listed] == ["completed"]


async def test_a_rejected_report_is_told_while_watching_and_explained(desk: Desk) -> None:
    submitted = await desk.shell.json("campaign", "submit", desk.write_campaign())
    watching = asyncio.create_task(desk.shell.run("campaign", "watch", submitted["campaign_id"], "--json"))
    await desk.compute(submitted["campaign_id"], biases=[0.0, 0.0, 0.04])
    code, output, errors = await watching
    assert code == 0, errors
    assert json.loads(output)["rejections_by_reason"].keys() == {"disagrees"}
    told = [line for line in errors.splitlines() if "was rejected" in line]
    assert told
    assert all("allowed" in line for line in told)
    story = await desk.shell.json("explain", submitted["campaign_id"][:10])
    assert story["kind"] == "campaign"
    assert told[0] in [event["text"] for event in story["events"]]


async def test_a_second_campaign_says_what_it_need_not_pay_for(desk: Desk) -> None:
    first = await desk.shell.json("campaign", "submit", desk.write_campaign())
    await desk.compute(first["campaign_id"], biases=[0.0, 0.0])
    (desk.folder / "texts" / "three.md").write_text("Something new. " * 20)
    code, output, errors = await desk.shell.run("campaign", "submit", desk.write_campaign(name="again"))
    assert code == 0, errors
    assert f"{first['units']} of them known already" in output


async def test_a_plan_tells_what_a_campaign_costs_and_starts_nothing(desk: Desk) -> None:
    code, output, errors = await desk.shell.run("campaign", "plan", desk.write_campaign())
    assert code == 0, errors
    assert output.startswith("activation: 2 documents, ")
    assert "no host is here" in output
    planned = await desk.shell.json("campaign", "plan", desk.write_campaign())
    assert [stage["kind"] for stage in planned["stages"]] == ["prefill"]
    assert await desk.coordinator.campaigns.newest(OPERATOR, 10) == []
    submitted = await desk.shell.json("campaign", "submit", desk.write_campaign())
    assert planned["units"] == submitted["units"]
    assert planned["tokens"] == submitted["tokens"]
    assert planned["flops_left"] == 2 * planned["flops"] > 0


async def test_a_plan_leaves_out_what_the_pool_has(desk: Desk) -> None:
    first = await desk.shell.json("campaign", "submit", desk.write_campaign())
    await desk.compute(first["campaign_id"], biases=[0.0, 0.0])
    planned = await desk.shell.json("campaign", "plan", desk.write_campaign(name="again"))
    assert (planned["units"], planned["units_present"], planned["flops_left"]) == (first["units"], first["units"], 0)


async def test_a_distillation_is_planned_stage_by_stage(desk: Desk) -> None:
    wanted = {"recipe": "distill", "distill": SMALL_DISTILLATION}
    planned = await desk.shell.json("campaign", "plan", desk.write_campaign(activation={}, **wanted))
    stages = {stage["kind"]: stage for stage in planned["stages"]}
    assert list(stages) == ["study", "train", "evaluate"]
    # Two documents of one chunk: 8 conversations in twos to train on, 4 held out; 6 steps in twos; 4 items in twos.
    assert [stages[kind]["units"] for kind in stages] == [2 * (4 + 2), 2 * 3, 2 * 2]
    assert [stages[kind]["replicas"] for kind in stages] == [1, 1, 2]
    assert all(stage["flops"] > 0 and stage["bytes"] > 0 for stage in stages.values())


async def test_a_paused_campaign_waits_until_it_is_resumed(desk: Desk) -> None:
    submitted = await desk.shell.json("campaign", "submit", desk.write_campaign())
    paused = await desk.shell.json("campaign", "pause", submitted["campaign_id"][:8])
    assert paused["state"] == "paused"
    async with simulated_hosts(desk.endpoint, 1) as (host,):
        assert (await host.sync(want=4)).leases == ()
    resumed = await desk.shell.json("campaign", "resume", submitted["campaign_id"])
    assert resumed["state"] == "running"
    await desk.compute(submitted["campaign_id"], biases=[0.0, 0.0])
    code, output, errors = await desk.shell.run("campaign", "results", submitted["campaign_id"])
    assert code == 0, errors
    assert "handbook/one:1.0.0" in output
    assert output.splitlines()[-1] == "fetch one with: memgrid pull handbook/one:1.0.0"
    results = await desk.shell.json("campaign", "results", submitted["campaign_id"])
    assert all(each["cube_digest"].startswith("sha256:") for each in results["documents"])


async def test_watching_a_cancelled_campaign_fails(desk: Desk) -> None:
    submitted = await desk.shell.json("campaign", "submit", desk.write_campaign())
    cancelled = await desk.shell.json("campaign", "cancel", submitted["campaign_id"])
    assert cancelled["state"] == "cancelled"
    code, output, _ = await desk.shell.run("campaign", "watch", submitted["campaign_id"])
    assert code == 1
    assert "cancelled" in output


async def test_a_model_is_pushed_once_and_named_by_its_identity(desk: Desk) -> None:
    pushed = await desk.shell.json("model", "push", str(desk.model), "Tiny Model")
    assert pushed["model"].startswith("models/tiny-model:latest@sha256:")
    assert pushed["identity"] == identity_of_folder(desk.model).digest
    again = await desk.shell.json("campaign", "submit", desk.write_campaign(model="models/tiny-model"))
    assert again["model"].startswith("models/tiny-model")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"priorty": 1}, "campaign.yaml: priorty: unknown key"),
        ({"sources": [{"path": "nowhere/*.md"}]}, "campaign.yaml: sources[0].path: expected files, found none"),
        ({"model": "/no/such/model"}, "model /no/such/model: no such folder"),
        (
            {"activation": {"chunk_tokens": 1 << 40}},
            "campaign.yaml: activation.chunk_tokens: expected a whole number",
        ),
    ],
)
@pytest.mark.parametrize("command", ["validate", "plan", "submit"])
async def test_bad_input_is_one_line_and_exit_code_2(
    desk: Desk, command: str, changed: dict[str, Any], expected: str
) -> None:
    code, output, errors = await desk.shell.run("campaign", command, desk.write_campaign(**changed))
    assert (code, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert expected in errors
    assert await desk.coordinator.campaigns.newest(OPERATOR, 10) == []


async def test_what_only_the_grid_can_know_is_told_as_clearly(desk: Desk) -> None:
    code, _, errors = await desk.shell.run("campaign", "submit", desk.write_campaign(model="models/absent"))
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "campaign.yaml: model: model models/absent is not in the pool" in errors
    code, _, errors = await desk.shell.run("campaign", "status", "feedface")
    assert (code, len(errors.splitlines())) == (1, 1)


async def test_without_a_token_nothing_is_created(desk: Desk) -> None:
    del desk.shell.environment["MEMGRID_TOKEN"]
    code, _, errors = await desk.shell.run("campaign", "submit", desk.write_campaign())
    assert (code, errors) == (1, "memgrid: a token is needed to push to models/tiny\n")
    assert await desk.coordinator.campaigns.newest(OPERATOR, 10) == []
