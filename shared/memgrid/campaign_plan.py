"""What a campaign is expected to cost, as its operator is told before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration

from memgrid.v1 import campaigns_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One kind of unit of a campaign.

    `flops` counts each unit once; `flops_left` counts replicas, and leaves out what the pool has already. `bytes` are
    what hosts send back. `expected_s` is None while no host is there.
    """

    kind: str
    units: int
    units_present: int
    flops: int
    flops_left: int
    bytes: int
    replicas: int
    expected_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignPlan:
    """All stages of a campaign and their sum, on the hosts now alive."""

    recipe: str
    documents: int
    tokens: int
    stages: tuple[PlannedStage, ...]
    units: int
    units_present: int
    flops: int
    flops_left: int
    hosts: int
    flops_per_s: float
    expected_s: float | None
    documents_present: int = 0
    """Of which the pool has a cube of their name and version already."""

    @property
    def bytes(self) -> int:
        return sum(stage.bytes for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}


def plan_from_message(message: pb.CampaignPlan) -> CampaignPlan:
    return CampaignPlan(
        recipe=message.recipe,
        documents=message.documents,
        tokens=message.tokens,
        stages=tuple(_stage(stage) for stage in message.stages),
        units=message.units,
        units_present=message.units_present,
        flops=message.flops,
        flops_left=message.flops_left,
        hosts=message.hosts,
        flops_per_s=message.flops_per_s,
        expected_s=_seconds(message.expected) if message.HasField("expected") else None,
        documents_present=message.documents_present,
    )


def _stage(message: pb.PlannedStage) -> PlannedStage:
    return PlannedStage(
        kind=message.kind,
        units=message.units,
        units_present=message.units_present,
        flops=message.flops,
        flops_left=message.flops_left,
        bytes=message.bytes,
        replicas=message.replicas,
        expected_s=_seconds(message.expected) if message.HasField("expected") else None,
    )


def _seconds(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()
