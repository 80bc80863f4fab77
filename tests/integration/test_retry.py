"""Documents that failed are tried again: what was accepted is kept, and what would only fail again is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint
from memgrid.errors import InvalidError, NotAllowedError
from memgrid.testing import SimulatedGpu
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState, DocumentState
from memgrid_coordinator.records import Caller, Role, Submission
from memgrid_coordinator.services.access import Access
from tests.grids import (
    OPERATOR,
    campaign_of,
    run_until_ended,
    simulated_hosts,
    submit,
)

OWNER = Caller(role=Role.OWNER, name="the owner")
TEXT = "The bell tower of Ebenried was built by two sisters in 1650. "
DISPUTED = [0.0, 0.4, 0.9]
"""Three hosts with as many opinions: no two of them agree."""


async def compute(
    coordinator: Coordinator, endpoint: GridEndpoint, model: Path, submission: Submission, biases: list[float]
) -> None:
    """Volunteers that nobody saw before, until the campaign is over."""
    geometry = identity_of_folder(model).geometry
    async with simulated_hosts(endpoint, len(biases)) as hosts:
        gpus = [SimulatedGpu(geometry, bias=bias, seed=number) for number, bias in enumerate(biases)]
        await run_until_ended(coordinator, submission, dict(zip(hosts, gpus, strict=True)))


async def test_what_nobody_agreed_on_is_computed_again_and_published(
    grid: tuple[Coordinator, GridEndpoint], tiny_model_folder: Path
) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"a.txt": TEXT}, trust={"min_replicas": 2, "max_replicas": 3})
    campaign_id = submission.campaign.campaign_id
    await compute(coordinator, endpoint, tiny_model_folder, submission, DISPUTED)
    failed = await campaign_of(coordinator, submission)
    assert failed.state is CampaignState.FAILED
    assert failed.documents[0].reason is not None

    retried = await coordinator.campaigns.retry(OPERATOR, campaign_id)
    assert retried.documents == ("a",)
    assert retried.campaign.state is CampaignState.RUNNING
    assert retried.campaign.ended_at is None
    assert retried.campaign.documents[0].reason is None
    again = await coordinator.campaigns.retry(OPERATOR, campaign_id)
    assert (again.documents, again.left) == ((), ())

    await compute(coordinator, endpoint, tiny_model_folder, submission, [0.0, 0.0])
    done = await campaign_of(coordinator, submission)
    assert done.state is CampaignState.COMPLETED
    assert done.documents[0].cube == "handbook/a:1.0.0"
    acts = await Access(coordinator.store, coordinator.clock).acts(OWNER, 10)
    assert [act.action for act in acts] == ["campaign_retry", "campaign_submit", "pool_push"]


async def test_only_what_can_end_otherwise_is_tried_again(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, _ = grid
    submission = await submit(coordinator, {"a.txt": TEXT, "b.txt": f"Another. {TEXT}", "c.txt": f"A third. {TEXT}"})
    campaign_id = submission.campaign.campaign_id
    reasons = (ReasonCode.TOO_MANY_FAILURES, ReasonCode.BELOW_QUALITY)
    for document, code in zip(submission.campaign.documents, reasons, strict=False):
        await coordinator.advancing._finishing.fail(document, Reason(code=code, text="as a test has it"))
    retried = await coordinator.campaigns.retry(OPERATOR, campaign_id)
    assert retried.documents == ("a",)
    assert [document.name for document in retried.left] == ["b"]
    states = [document.state for document in retried.campaign.documents]
    assert states == [DocumentState.RUNNING, DocumentState.FAILED, DocumentState.RUNNING]
    assert retried.campaign.units_by_state["open"] > 0
    with pytest.raises(InvalidError, match="no document 'd'"):
        await coordinator.campaigns.retry(OPERATOR, campaign_id, ["d"])
    with pytest.raises(NotAllowedError, match="needs an operator token"):
        await coordinator.campaigns.retry(Caller(role=Role.READER), campaign_id)
    await coordinator.campaigns.cancel(OPERATOR, campaign_id)
    with pytest.raises(InvalidError, match="was cancelled"):
        await coordinator.campaigns.retry(OPERATOR, campaign_id)
