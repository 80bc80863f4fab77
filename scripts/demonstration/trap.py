"""Make sure that the cheat gets something to cheat with: the honest ones are away while it trains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from demonstration.grid import HONEST, LAZY, Grid
from demonstration.processes import DemoError
from memgrid.campaign_status import CampaignStatus, status_from_message
from memgrid.cli.control import control_plane
from memgrid.endpoint import discover
from memgrid.v1 import campaigns_pb2 as pb

STUDY_LIMIT_S = 900.0
CAUGHT_LIMIT_S = 600.0


def leave_training_to_the_cheat(grid: Grid, campaign_id: str) -> None:
    """Send the honest volunteers home, as their owners may at any time, from the first training unit until the
    cheat's answer was rejected; then the cheat goes and they are back. Raises DemoError when nothing is rejected in
    time.
    """
    before = _until(grid, campaign_id, _is_training, STUDY_LIMIT_S)
    grid.send_home(*HONEST)
    try:
        _until(
            grid,
            campaign_id,
            lambda status: status.is_over or status.rejections > before.rejections,
            CAUGHT_LIMIT_S,
        )
    finally:
        grid.send_home(LAZY)
        # A relay has one host at work at a time, so it may have the machine to itself.
        grid.bring_volunteers(*HONEST, threads=2)


def _is_training(status: CampaignStatus) -> bool:
    """Whether there is a training unit to be had: a start is made before the first."""
    is_there = any(document.stage == "train" for document in status.documents) and "open" in status.units_by_state
    return status.is_over or is_there


def _until(grid: Grid, campaign_id: str, check: Callable[[CampaignStatus], bool], limit_s: float) -> CampaignStatus:
    """The campaign as soon as it is as wanted."""

    async def watch() -> CampaignStatus:
        endpoint = await asyncio.to_thread(discover, grid.url, home=grid.folder / "operator")
        async with control_plane(endpoint, grid.token_file.read_text().strip()) as plane:
            async for message in plane.campaigns.Watch(pb.GetCampaignRequest(campaign_id=campaign_id)):
                if check(status := status_from_message(message)):
                    return status
        raise DemoError("the coordinator ended while the campaign was watched")

    try:
        return asyncio.run(asyncio.wait_for(watch(), limit_s))
    except TimeoutError:
        raise DemoError(f"campaign {campaign_id} did not get on within {limit_s:.0f} s") from None
