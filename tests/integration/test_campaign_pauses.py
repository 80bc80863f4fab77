"""Campaigns that pause, resume, run out of budget, or are only planned; over the real protocol."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memgrid.clock import ManualClock
from memgrid.endpoint import GridEndpoint
from memgrid.errors import InvalidError, MemgridError, NotAllowedError, TokenRequiredError, UnknownCubeError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu
from memgrid.units import ReasonCode
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState, DocumentState
from memgrid_coordinator.records import Caller, Role, SubmittedSource
from memgrid_coordinator.services.explaining import Explaining
from tests.distilling import distill
from tests.grids import (
    OPERATOR,
    campaign_file,
    campaign_of,
    eventually,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
    work_on,
)

TEXT = "The valve opens at three bar and closes at two. " * 8


async def test_a_pause_pays_what_is_out_and_hands_out_nothing_more(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    submission = await submit(
        coordinator, {"manual.txt": TEXT}, activation={"chunk_tokens": 32, "wrap": "plain", "layout": "independent"}
    )
    campaign_id = submission.campaign.campaign_id
    async with simulated_hosts(endpoint, 2) as (one, other):
        gpu = SimulatedGpu(geometry)
        (offer,) = (await one.sync(want=1)).leases
        paused = await coordinator.campaigns.pause(OPERATOR, campaign_id)
        assert paused.state is CampaignState.PAUSED
        assert (await coordinator.campaigns.pause(OPERATOR, campaign_id)).state is CampaignState.PAUSED
        answer = await other.sync(want=4)
        assert answer.leases == ()
        assert answer.idle_reason is not None and answer.idle_reason.code is ReasonCode.NO_WORK
        work = await work_on(coordinator, gpu, offer)
        answer = await one.sync(held=[offer], work=[work])
        assert [ack.accepted for ack in answer.acks] == [True], "what it held it may report"
        assert (await other.sync(want=4)).leases == (), "not even the second replica is handed out"
        resumed = await coordinator.campaigns.resume(OPERATOR, campaign_id)
        assert resumed.state is CampaignState.RUNNING
        hosts = {host: SimulatedGpu(geometry) for host in (one, other)}
        await run_until_ended(coordinator, submission, hosts, {one: [work]})
    campaign = await campaign_of(coordinator, submission)
    assert campaign.state is CampaignState.COMPLETED
    assert campaign.reports_by_verdict == {"agreed": 2 * sum(campaign.units_by_state.values())}, "all of it was paid"
    told = await Explaining(coordinator.store).explain(campaign_id)
    assert [line.event.name for line in told.lines if line.event.name.startswith("campaign_")] == [
        "campaign_submitted",
        "campaign_paused",
        "campaign_resumed",
        "campaign_completed",
    ]
    assert (await coordinator.campaigns.pause(OPERATOR, campaign_id)).state is CampaignState.COMPLETED


async def test_a_watch_goes_on_through_a_pause(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, _ = grid
    submission = await submit(coordinator, {"manual.txt": TEXT})
    campaign_id = submission.campaign.campaign_id
    states = []
    async for campaign in coordinator.campaigns.watch(OPERATOR, campaign_id):
        states.append(campaign.state)
        if campaign.state is CampaignState.RUNNING:
            await coordinator.campaigns.pause(OPERATOR, campaign_id)
        elif campaign.state is CampaignState.PAUSED:
            await coordinator.campaigns.cancel(OPERATOR, campaign_id)
    assert states == [CampaignState.RUNNING, CampaignState.PAUSED, CampaignState.CANCELLED]


async def test_only_operators_plan_pause_and_resume(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, _ = grid
    submission = await submit(coordinator, {"manual.txt": TEXT})
    campaigns, campaign_id = coordinator.campaigns, submission.campaign.campaign_id
    refused: dict[Role, type[MemgridError]] = {Role.ANONYMOUS: TokenRequiredError, Role.READER: NotAllowedError}
    for role, error in refused.items():
        caller = Caller(role=role)
        with pytest.raises(error):
            await campaigns.pause(caller, campaign_id)
        with pytest.raises(error):
            await campaigns.resume(caller, campaign_id)
        with pytest.raises(error):
            await campaigns.plan(caller, campaign=campaign_file().to_bytes(), sources=())
    assert await campaigns.get(Caller(role=Role.READER), campaign_id) == submission.campaign
    assert await campaigns.pause(Caller(role=Role.OWNER), campaign_id) != submission.campaign


async def test_a_deadline_that_passes_ends_the_campaign(tmp_path: Path, tiny_model_folder: Path) -> None:
    clock = ManualClock(datetime.now(UTC))
    deadline = clock.now() + timedelta(hours=1)
    async with running_coordinator(tmp_path / "data", clock=clock) as (coordinator, _):
        await push_model(coordinator, tiny_model_folder)
        submission = await submit(coordinator, {"manual.txt": TEXT}, budget={"deadline": deadline.isoformat()})
        await coordinator.sweeps.run_now("documents")
        assert (await campaign_of(coordinator, submission)).state is CampaignState.RUNNING
        clock.advance(timedelta(hours=2))

        async def is_over() -> bool:
            return (await campaign_of(coordinator, submission)).state is CampaignState.FAILED

        await eventually(is_over)
        campaign = await campaign_of(coordinator, submission)
        (document,) = campaign.documents
        assert document.state is DocumentState.FAILED
        assert document.reason is not None and document.reason.code is ReasonCode.BUDGET_SPENT
        assert set(campaign.units_by_state) == {"cancelled"}


def source(coordinator: Coordinator, text: str) -> SubmittedSource:
    digest = coordinator.blobs.put_bytes(text.encode())
    return SubmittedSource(uri="manual.txt", digest=digest, format="txt", licence="MIT", text_column="", id_column="")


async def test_a_plan_of_caches_knows_what_is_there_already(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    asked: dict[str, Any] = {"campaign": campaign_file().to_bytes(), "sources": (source(coordinator, TEXT),)}
    before = await coordinator.campaigns.plan(OPERATOR, **asked)
    assert (before.recipe, before.documents, before.documents_present, before.speeds) == ("activation", 1, 0, ())
    assert before.total_s is None, "nobody is there to do it"
    (stage,) = before.stages
    assert (stage.kind, stage.units_present, stage.replicas) == ("prefill", 0, 2)
    assert stage.flops_left == 2 * stage.flops
    assert await coordinator.campaigns.recent() == [], "a plan creates nothing"
    submission = await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 2) as hosts:
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
        after = await coordinator.campaigns.plan(OPERATOR, **asked)
    campaign = await campaign_of(coordinator, submission)
    (stage,) = after.stages
    assert (stage.units, stage.units_present, stage.flops_left) == (before.stages[0].units, stage.units, 0)
    assert stage.flops == campaign.produced_flops
    assert (after.documents_present, len(after.speeds), after.total_s) == (1, 2, 0)


async def test_a_plan_of_a_distillation_foresees_every_stage(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, endpoint = grid
    asked: dict[str, Any] = {
        "campaign": campaign_file(recipe="distill", distill=distill()).to_bytes(),
        "sources": (source(coordinator, TEXT),),
    }
    async with simulated_hosts(endpoint, 1):
        plan = await coordinator.campaigns.plan(OPERATOR, **asked)
    assert [(stage.kind, stage.units, stage.replicas) for stage in plan.stages] == [
        ("study", 3, 1),
        ("train", 2, 1),
        ("evaluate", 2, 2),
    ]
    assert all(stage.flops > 0 and stage.bytes > 0 for stage in plan.stages)
    assert plan.total_s == pytest.approx(sum(stage.flops_left for stage in plan.stages) / plan.speeds[0])


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"study": {"chunk_tokens": 8000}}, InvalidError, "distill.study.chunk_tokens: expected at most"),
        ({"adapter": {"virtual_tokens": 4000}}, InvalidError, "expected more than the 4000 tokens of its adapter"),
        (
            {"train": {"distractors": ["handbook/other:1.0.0"]}},
            UnknownCubeError,
            "distill.train.distractors: handbook/other:1.0.0: there is no such cube in the pool",
        ),
    ],
    ids=["chunk", "adapter", "distractor"],
)
async def test_what_can_not_be_distilled_is_refused_in_one_line(
    grid: tuple[Coordinator, GridEndpoint], changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    coordinator, _ = grid
    with pytest.raises(error, match=words.replace("(", r"\(")) as raised:
        await submit(coordinator, {"manual.txt": TEXT}, recipe="distill", distill=distill(**changed))
    assert "\n" not in str(raised.value)
    assert await coordinator.campaigns.recent() == []


async def test_a_cache_is_no_distractor(grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 2) as hosts:
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
    wanted = distill(train={"distractors": ["handbook/manual:1.0.0"]})
    with pytest.raises(InvalidError, match="expected a cube that is a trained prefix, found one of kind activation"):
        await submit(coordinator, {"manual.txt": TEXT}, request_id="second", recipe="distill", distill=wanted)
