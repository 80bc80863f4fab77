"""The Campaigns service: unpack, call one service method, pack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration

from memgrid.cube.manifest import Quality
from memgrid.digest import parse_digest
from memgrid.v1 import campaigns_pb2 as pb
from memgrid.v1 import campaigns_pb2_grpc as pb_grpc
from memgrid.wire import duration_to_message, reason_to_message, timestamp_to_message
from memgrid_coordinator.records import Campaign, CampaignEstimate, Document, SubmittedSource
from memgrid_coordinator.rpc.interceptor import caller
from memgrid_coordinator.services.campaigns import Campaigns


class CampaignsServicer(pb_grpc.CampaignsServicer):
    def __init__(self, campaigns: Campaigns) -> None:
        self._campaigns = campaigns

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.Submission:  # noqa: N802
        sources = tuple(source_from_message(source) for source in request.sources)
        submission = await self._campaigns.submit(
            caller(), request_id=request.request_id, campaign=request.campaign, sources=sources
        )
        return pb.Submission(campaign=_campaign(submission.campaign), units_reused=submission.units_reused)

    async def Plan(self, request: pb.SubmitRequest, context: Any) -> pb.CampaignPlan:  # noqa: N802
        sources = tuple(source_from_message(source) for source in request.sources)
        return _plan(await self._campaigns.plan(caller(), campaign=request.campaign, sources=sources))

    async def Get(self, request: pb.GetCampaignRequest, context: Any) -> pb.Campaign:  # noqa: N802
        return _campaign(await self._campaigns.get(caller(), request.campaign_id))

    async def List(self, request: pb.ListCampaignsRequest, context: Any) -> pb.ListCampaignsResponse:  # noqa: N802
        found = await self._campaigns.newest(caller(), request.limit)
        return pb.ListCampaignsResponse(campaigns=[_campaign(one) for one in found])

    async def Watch(self, request: pb.GetCampaignRequest, context: Any) -> AsyncIterator[pb.Campaign]:  # noqa: N802
        async for campaign in self._campaigns.watch(caller(), request.campaign_id):
            yield _campaign(campaign)

    async def Pause(self, request: pb.GetCampaignRequest, context: Any) -> pb.Campaign:  # noqa: N802
        return _campaign(await self._campaigns.pause(caller(), request.campaign_id))

    async def Resume(self, request: pb.GetCampaignRequest, context: Any) -> pb.Campaign:  # noqa: N802
        return _campaign(await self._campaigns.resume(caller(), request.campaign_id))

    async def Cancel(self, request: pb.GetCampaignRequest, context: Any) -> pb.Campaign:  # noqa: N802
        return _campaign(await self._campaigns.cancel(caller(), request.campaign_id))

    async def Retry(self, request: pb.RetryRequest, context: Any) -> pb.RetryResponse:  # noqa: N802
        retried = await self._campaigns.retry(caller(), request.campaign_id, tuple(request.documents))
        return pb.RetryResponse(
            campaign=_campaign(retried.campaign),
            documents=retried.documents,
            left=[_left(document) for document in retried.left],
        )


def source_from_message(source: pb.Source) -> SubmittedSource:
    return SubmittedSource(
        uri=source.uri,
        digest=parse_digest(source.digest),
        format=source.format,
        licence=source.licence,
        text_column=source.text_column,
        id_column=source.id_column,
    )


def _plan(estimate: CampaignEstimate) -> pb.CampaignPlan:
    return pb.CampaignPlan(
        recipe=estimate.recipe,
        documents=estimate.documents,
        tokens=estimate.tokens,
        stages=[
            pb.PlannedStage(
                kind=stage.kind,
                units=stage.units,
                units_present=stage.units_present,
                flops=stage.flops,
                flops_left=stage.flops_left,
                bytes=stage.bytes,
                replicas=stage.replicas,
                expected=_seconds(estimate.expected_s(stage)),
            )
            for stage in estimate.stages
        ],
        units=sum(stage.units for stage in estimate.stages),
        units_present=sum(stage.units_present for stage in estimate.stages),
        flops=sum(stage.flops for stage in estimate.stages),
        flops_left=sum(stage.flops_left for stage in estimate.stages),
        hosts=len(estimate.speeds),
        flops_per_s=sum(estimate.speeds),
        expected=_seconds(estimate.total_s),
        documents_present=estimate.documents_present,
    )


def _seconds(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration_to_message(timedelta(seconds=seconds))


def _campaign(campaign: Campaign) -> pb.Campaign:
    return pb.Campaign(
        campaign_id=campaign.campaign_id,
        name=campaign.name,
        state=campaign.state,
        model=campaign.model,
        created_at=timestamp_to_message(campaign.created_at),
        ended_at=None if campaign.ended_at is None else timestamp_to_message(campaign.ended_at),
        units=sum(campaign.units_by_state.values()),
        units_by_state=campaign.units_by_state,
        reports_by_verdict=campaign.reports_by_verdict,
        rejections_by_reason=campaign.rejections_by_reason,
        tokens=campaign.tokens,
        tokens_accepted=campaign.tokens_accepted,
        produced_flops=campaign.produced_flops,
        spent_flops=campaign.spent_flops,
        documents=[_document(document) for document in campaign.documents],
        eta=_seconds(campaign.eta_s),
        recipe=campaign.recipe,
        device_hours=campaign.device_hours,
    )


def _document(document: Document) -> pb.Document:
    progress = document.progress
    return pb.Document(
        name=document.name,
        state=document.state,
        tokens=document.tokens,
        units=document.units,
        units_accepted=document.units_accepted,
        cube=document.cube,
        cube_digest=document.cube_digest or "",
        reason=None if document.reason is None else reason_to_message(document.reason),
        stage=progress.stage or "",
        steps=progress.steps,
        steps_total=progress.steps_total,
        losses=[pb.Loss(step=step, loss=loss) for step, loss in progress.losses],
        quality=None if progress.quality is None else _quality(progress.quality),
        note=None if progress.note is None else reason_to_message(progress.note),
    )


def _left(document: Document) -> pb.LeftDocument:
    reason = None if document.reason is None else reason_to_message(document.reason)
    return pb.LeftDocument(name=document.name, reason=reason)


def _quality(quality: Quality) -> pb.Quality:
    return pb.Quality(gap_closed=quality.gap_closed, **asdict(quality))
