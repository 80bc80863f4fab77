"""Follow a campaign to its end through lost connections, telling rejections as they happen."""

from __future__ import annotations

import asyncio
import random

from memgrid.campaign_status import CampaignStatus, status_from_message
from memgrid.channel import backoff_s
from memgrid.cli.control import ControlPlane, control_plane
from memgrid.cli.watching import Display
from memgrid.endpoint import GridEndpoint
from memgrid.errors import UnavailableError
from memgrid.story import StoryEvent, story_from_message
from memgrid.v1 import campaigns_pb2 as pb
from memgrid.v1 import grid_pb2

ATTEMPTS_MAX = 20
"""Failures in a row before giving up: about ten minutes."""
REJECTED = "report_rejected"


async def follow(endpoint: GridEndpoint, token: str | None, campaign_id: str, display: Display) -> CampaignStatus:
    """The campaign when it has ended; raises MemgridError."""
    rng = random.Random()
    failures = 0
    rejections = Rejections()
    async with control_plane(endpoint, token) as plane:
        while True:
            try:
                async for message in plane.campaigns.Watch(pb.GetCampaignRequest(campaign_id=campaign_id)):
                    failures = 0
                    status = status_from_message(message)
                    for line in await rejections.new_ones(plane, status):
                        display.say(line)
                    display.update(status)
                    if status.is_over:
                        return status
            except UnavailableError as error:
                if failures == ATTEMPTS_MAX:
                    raise
                if failures == 0:
                    display.say(f"{error}; trying again")
            # A coordinator that shuts down ends the stream in peace: that counts like one that is gone.
            failures += 1
            await asyncio.sleep(backoff_s(failures, rng))


class Rejections:
    """What has been told already."""

    def __init__(self) -> None:
        self._told = 0
        self._seen: set[StoryEvent] = set()

    async def new_ones(self, plane: ControlPlane, status: CampaignStatus) -> list[str]:
        """A line for each report rejected since the last call, as the event log tells it."""
        if status.rejections <= self._told:
            return []
        story = story_from_message(await plane.grid.Explain(grid_pb2.ExplainRequest(id=status.campaign_id)))
        fresh = [event for event in story.events if event.name == REJECTED and event not in self._seen]
        self._told = status.rejections
        self._seen.update(fresh)
        return [event.text for event in fresh]
