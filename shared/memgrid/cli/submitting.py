"""Bring everything a campaign needs to the grid, then ask for it, or for what it would cost."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from memgrid.campaign import CampaignFile
from memgrid.campaign_plan import CampaignPlan, plan_from_message
from memgrid.campaign_sources import LocalSource
from memgrid.campaign_status import CampaignStatus, status_from_message
from memgrid.cli.control import control_plane
from memgrid.cli.model import push_model
from memgrid.endpoint import GridEndpoint
from memgrid.pool import Pool
from memgrid.v1 import campaigns_pb2 as pb

SUBMIT_TIMEOUT_S = 600.0
"""Planning reads and tokenises every source before the answer comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """A campaign whose sources and model lie in the grid's pool."""

    request: pb.SubmitRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A campaign just planned; `units_reused` were accepted before, in other campaigns."""

    status: CampaignStatus
    units_reused: int


async def submit_campaign(endpoint: GridEndpoint, token: str | None, brought: Brought, console: Console) -> Submitted:
    """Nothing is created before all blobs are there; blobs without a campaign are swept away by the grid."""
    with console.status("planning"):
        async with control_plane(endpoint, token) as plane:
            answer = await plane.campaigns.Submit(brought.request, timeout=SUBMIT_TIMEOUT_S)
    return Submitted(status=status_from_message(answer.campaign), units_reused=answer.units_reused)


async def plan_campaign(
    endpoint: GridEndpoint, token: str | None, brought: Brought, console: Console
) -> CampaignPlan:
    """What submitting would create and cost; nothing is created."""
    with console.status("planning"):
        async with control_plane(endpoint, token) as plane:
            return plan_from_message(await plane.campaigns.Plan(brought.request, timeout=SUBMIT_TIMEOUT_S))


def bring(
    endpoint: GridEndpoint,
    token: str | None,
    campaign: CampaignFile,
    sources: Sequence[LocalSource],
    folder: Path,
    console: Console,
) -> Brought:
    """Push the sources, and the model if it is a folder, as far as the grid does not have them."""
    with Pool(endpoint.url, token=token) as pool:
        if campaign.model_is_folder:
            model = bring_model(pool, campaign, folder, console)
            campaign = campaign.model_copy(update={"model": model})
        with console.status(f"bringing {len(sources)} sources"):
            brought = [bring_source(pool, campaign.name, source) for source in sources]
    return Brought(
        request=pb.SubmitRequest(request_id=uuid.uuid4().hex, campaign=campaign.to_bytes(), sources=brought)
    )


def bring_model(pool: Pool, campaign: CampaignFile, folder: Path, console: Console) -> str:
    """Push a model that is a folder; the pool's name for it, with its digest."""
    path = (folder / Path(campaign.model).expanduser()).resolve()
    with console.status(f"bringing the model {path.name}"):
        return push_model(pool, path, path.name).pinned


def bring_source(pool: Pool, campaign_name: str, source: LocalSource) -> pb.Source:
    digest = pool.push_blob(f"sources/{campaign_name}", source.path)
    return pb.Source(
        uri=source.uri,
        digest=digest,
        size_bytes=source.size_bytes,
        format=source.format,
        licence=source.licence,
        text_column=source.text_column,
        id_column=source.id_column,
    )
