"""Ask a grid to try a campaign's failed documents again, and tell what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memgrid.campaign_status import CampaignStatus, status_from_message
from memgrid.cli.control import control_plane
from memgrid.endpoint import GridEndpoint
from memgrid.v1 import campaigns_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """Documents that run again, and those that would only fail again, each with why it failed."""

    campaign: CampaignStatus
    documents: tuple[str, ...]
    left: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        left = [{"name": name, "reason": reason} for name, reason in self.left]
        return {**self.campaign.to_json(), "retried": list(self.documents), "left": left}


async def retry_campaign(
    endpoint: GridEndpoint, token: str | None, campaign_id: str, documents: Sequence[str]
) -> Retried:
    """Raises MemgridError."""
    async with control_plane(endpoint, token) as plane:
        answer = await plane.campaigns.Retry(pb.RetryRequest(campaign_id=campaign_id, documents=documents))
    return Retried(
        campaign=status_from_message(answer.campaign),
        documents=tuple(answer.documents),
        left=tuple((one.name, one.reason.text or one.reason.code) for one in answer.left),
    )


def retry_lines(retried: Retried) -> list[str]:
    """What came of it, a line a document that stays as it is."""
    campaign, count = retried.campaign, len(retried.documents)
    if not count and not retried.left:
        return [f"{campaign.name}: nothing has failed; it is {campaign.state}"]
    again = f"{count} document{'' if count == 1 else 's'} tried again"
    return [f"{campaign.name}: {again}", *(f"{name}: left, it would fail again: {why}" for name, why in retried.left)]
