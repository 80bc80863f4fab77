"""How a campaign stands, as its operator is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from memgrid.v1 import campaigns_pb2 as pb

RUNNING = "running"
PAUSED = "paused"
COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityStatus:
    """How a distilled cube answers held-out conversations, beside both anchors. NLL and KL in nats a token.

    `exact_…` is the share of answers that greedy decoding would give word for word.
    """

    nll_none: float
    nll_cube: float
    nll_text: float
    gap_closed: float
    items: int
    kl_none: float
    kl_cube: float
    exact_none: float
    exact_cube: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentStatus:
    """One document on its way to being a cube; `reason` says why it failed.

    Of a distillation: the stage it is in, accepted steps of training, their losses as (step, loss), and the quality
    once it was evaluated. `note` says why training ended early, if it did.
    """

    name: str
    state: str
    tokens: int
    units: int
    units_accepted: int
    cube: str
    cube_digest: str
    reason: str
    stage: str = ""
    steps: int = 0
    steps_total: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    quality: QualityStatus | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignStatus:
    """A campaign and how far it is. FLOPs: produced counts each accepted unit once, spent all their replicas."""

    campaign_id: str
    name: str
    state: str
    model: str
    created_at: datetime | None
    ended_at: datetime | None
    units: int
    units_by_state: dict[str, int]
    reports_by_verdict: dict[str, int]
    rejections_by_reason: dict[str, int]
    tokens: int
    tokens_accepted: int
    produced_flops: int
    spent_flops: int
    documents: tuple[DocumentStatus, ...]
    eta_s: float | None
    recipe: str = "activation"
    device_hours: float = 0.0
    """What hosts say they computed for it."""

    @property
    def is_over(self) -> bool:
        return self.state not in (RUNNING, PAUSED)

    @property
    def rejections(self) -> int:
        return sum(self.rejections_by_reason.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values; times as ISO 8601."""
        times = {"created_at": _iso(self.created_at), "ended_at": _iso(self.ended_at)}
        return {**asdict(self), **times}


def status_from_message(message: pb.Campaign) -> CampaignStatus:
    return CampaignStatus(
        campaign_id=message.campaign_id,
        name=message.name,
        state=message.state,
        model=message.model,
        created_at=_time(message.created_at) if message.HasField("created_at") else None,
        ended_at=_time(message.ended_at) if message.HasField("ended_at") else None,
        units=message.units,
        units_by_state=dict(sorted(message.units_by_state.items())),
        reports_by_verdict=dict(sorted(message.reports_by_verdict.items())),
        rejections_by_reason=dict(sorted(message.rejections_by_reason.items())),
        tokens=message.tokens,
        tokens_accepted=message.tokens_accepted,
        produced_flops=message.produced_flops,
        spent_flops=message.spent_flops,
        documents=tuple(_document(document) for document in message.documents),
        eta_s=message.eta.ToTimedelta().total_seconds() if message.HasField("eta") else None,
        # A coordinator of before distillation says nothing.
        recipe=message.recipe or "activation",
        device_hours=message.device_hours,
    )


def _document(message: pb.Document) -> DocumentStatus:
    return DocumentStatus(
        name=message.name,
        state=message.state,
        tokens=message.tokens,
        units=message.units,
        units_accepted=message.units_accepted,
        cube=message.cube,
        cube_digest=message.cube_digest,
        reason=message.reason.text or message.reason.code,
        stage=message.stage,
        steps=message.steps,
        steps_total=message.steps_total,
        losses=tuple((point.step, point.loss) for point in message.losses),
        quality=_quality(message.quality) if message.HasField("quality") else None,
        note=message.note.text or message.note.code,
    )


def _quality(message: pb.Quality) -> QualityStatus:
    return QualityStatus(**{field.name: getattr(message, field.name) for field in fields(QualityStatus)})


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds")
