"""One Sync on the wire: what a host says, and what it is answered."""

from __future__ import annotations

from collections.abc import Sequence

from memgrid.digest import digest_of, parse_digest
from memgrid.signing import SignedBody
from memgrid.units import (
    NO_WISHES,
    SKETCH_BYTES_MAX,
    Cancellation,
    CheckpointRef,
    HeldLease,
    LeaseOffer,
    ModelFiles,
    Release,
    ReportAck,
    SyncAnswer,
    SyncAsk,
    UploadOrder,
    VerdictNotice,
    Wishes,
)
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.wire.basics import (
    at_most,
    blob_from_message,
    blob_to_message,
    duration_from_message,
    duration_to_message,
    integer,
    lease_id_of,
    real,
    reason_from_message,
    reason_to_message,
    signed_from_message,
    signed_to_message,
    text,
    timestamp_from_message,
    timestamp_to_message,
    unit_key_from,
)
from memgrid.wire.reports import REPORTS_MAX

SYNC_BYTES_MAX = 8 << 20
"""The largest message of the control plane; a host with more to report sends it in several calls."""
LEASES_MAX = 4096
WISHES_MAX = 256


def sync_ask_to_message(ask: SyncAsk, reports: SignedBody | None) -> pb.SyncRequest:
    """`ask.reports` does not travel as such: `reports` is the signed batch that holds them."""
    held = [pb.HeldLease(lease_id=lease.lease_id, fence=lease.fence, progress=lease.progress) for lease in ask.held]
    released = [
        pb.Release(
            lease_id=lease.lease_id,
            fence=lease.fence,
            reason=reason_to_message(lease.reason),
            checkpoint=_checkpoint_to_message(lease.checkpoint),
        )
        for lease in ask.released
    ]
    return pb.SyncRequest(
        sequence=ask.sequence,
        held=held,
        awaiting=ask.awaiting,
        reports=signed_to_message(reports) if reports is not None else None,
        sketches=list(ask.sketches.values()),
        released=released,
        want=ask.want,
        wait=duration_to_message(ask.wait),
        wishes=wishes_to_message(ask.wishes) if ask.wishes != NO_WISHES else None,
    )


def sync_ask_from_message(message: pb.SyncRequest) -> tuple[SyncAsk, SignedBody | None]:
    """The ask with empty `reports`, and the signed batch to verify, parse and put there."""
    at_most("held", len(message.held), LEASES_MAX)
    at_most("awaiting", len(message.awaiting), LEASES_MAX)
    at_most("released", len(message.released), LEASES_MAX)
    at_most("sketches", len(message.sketches), REPORTS_MAX)
    for sketch in message.sketches:
        at_most("sketch", len(sketch), SKETCH_BYTES_MAX)
    at_most("want", message.want, LEASES_MAX)
    ask = SyncAsk(
        sequence=integer("sequence", message.sequence),
        held=tuple(_held_from_message(lease) for lease in message.held),
        awaiting=tuple(lease_id_of(lease_id) for lease_id in message.awaiting),
        reports=(),
        sketches={digest_of(sketch): sketch for sketch in message.sketches},
        released=tuple(_release_from_message(lease) for lease in message.released),
        want=message.want,
        wait=duration_from_message(message.wait),
        wishes=wishes_from_message(message.wishes),
    )
    return ask, signed_from_message(message.reports) if message.HasField("reports") else None


def wishes_to_message(wishes: Wishes) -> pb.Wishes:
    return pb.Wishes(
        kinds=sorted(wishes.kinds),
        campaigns=sorted(wishes.campaigns),
        avoided_campaigns=sorted(wishes.avoided_campaigns),
        cached_models=sorted(wishes.cached_models),
        longest=duration_to_message(wishes.longest) if wishes.longest is not None else None,
    )


def wishes_from_message(message: pb.Wishes) -> Wishes:
    return Wishes(
        kinds=_words("wishes.kinds", message.kinds),
        campaigns=_words("wishes.campaigns", message.campaigns),
        avoided_campaigns=_words("wishes.avoided_campaigns", message.avoided_campaigns),
        cached_models=frozenset(map(parse_digest, _words("wishes.cached_models", message.cached_models))),
        longest=duration_from_message(message.longest) if message.HasField("longest") else None,
    )


def _words(what: str, words: Sequence[str]) -> frozenset[str]:
    at_most(what, len(words), WISHES_MAX)
    return frozenset(text(what, word) for word in words)


def _held_from_message(message: pb.HeldLease) -> HeldLease:
    return HeldLease(
        lease_id=lease_id_of(message.lease_id),
        fence=integer("held.fence", message.fence),
        progress=real("held.progress", message.progress, 0, 1),
    )


def _release_from_message(message: pb.Release) -> Release:
    return Release(
        lease_id=lease_id_of(message.lease_id),
        fence=integer("released.fence", message.fence),
        reason=reason_from_message(message.reason),
        checkpoint=_checkpoint_from_message(message.checkpoint) if message.HasField("checkpoint") else None,
    )


def _checkpoint_to_message(checkpoint: CheckpointRef | None) -> pb.Checkpoint | None:
    if checkpoint is None:
        return None
    return pb.Checkpoint(
        digest=checkpoint.digest,
        size_bytes=checkpoint.size_bytes,
        progress=checkpoint.progress,
        path=checkpoint.path,
    )


def _checkpoint_from_message(message: pb.Checkpoint) -> CheckpointRef:
    return CheckpointRef(
        digest=parse_digest(message.digest),
        size_bytes=integer("checkpoint.size_bytes", message.size_bytes),
        progress=real("checkpoint.progress", message.progress, 0, 1),
        path=message.path,
    )


def sync_answer_to_message(answer: SyncAnswer) -> pb.SyncResponse:
    return pb.SyncResponse(
        leases=[lease_to_message(lease) for lease in answer.leases],
        models=[model_to_message(model) for model in answer.models],
        acks=[_ack_to_message(ack) for ack in answer.acks],
        verdicts=[_verdict_to_message(verdict) for verdict in answer.verdicts],
        uploads=[_upload_to_message(order) for order in answer.uploads],
        cancelled=[
            pb.Cancellation(lease_id=lease.lease_id, reason=reason_to_message(lease.reason))
            for lease in answer.cancelled
        ],
        idle_reason=reason_to_message(answer.idle_reason) if answer.idle_reason is not None else None,
        call_again_in=duration_to_message(answer.call_again_in),
    )


def sync_answer_from_message(message: pb.SyncResponse) -> SyncAnswer:
    return SyncAnswer(
        leases=tuple(lease_from_message(lease) for lease in message.leases),
        models=tuple(model_from_message(model) for model in message.models),
        acks=tuple(_ack_from_message(ack) for ack in message.acks),
        verdicts=tuple(_verdict_from_message(verdict) for verdict in message.verdicts),
        uploads=tuple(_upload_from_message(order) for order in message.uploads),
        cancelled=tuple(
            Cancellation(lease_id=lease_id_of(lease.lease_id), reason=reason_from_message(lease.reason))
            for lease in message.cancelled
        ),
        idle_reason=reason_from_message(message.idle_reason) if message.HasField("idle_reason") else None,
        call_again_in=duration_from_message(message.call_again_in),
    )


def lease_to_message(lease: LeaseOffer) -> pb.Lease:
    return pb.Lease(
        lease_id=lease.lease_id,
        fence=lease.fence,
        unit_key=lease.unit_key,
        spec=lease.spec,
        model=lease.model,
        inputs=[blob_to_message(blob) for blob in lease.inputs],
        deadline_at=timestamp_to_message(lease.deadline_at),
        estimate_s=lease.estimate_s,
        checkpoint=_checkpoint_to_message(lease.checkpoint),
    )


def lease_from_message(message: pb.Lease) -> LeaseOffer:
    return LeaseOffer(
        lease_id=lease_id_of(message.lease_id),
        fence=integer("lease.fence", message.fence),
        unit_key=unit_key_from(message.unit_key),
        spec=message.spec,
        model=parse_digest(message.model),
        inputs=tuple(blob_from_message(blob) for blob in message.inputs),
        deadline_at=timestamp_from_message(message.deadline_at),
        estimate_s=real("lease.estimate_s", message.estimate_s, 0, 1e9),
        checkpoint=_checkpoint_from_message(message.checkpoint) if message.HasField("checkpoint") else None,
    )


def model_to_message(model: ModelFiles) -> pb.Model:
    return pb.Model(digest=model.digest, files=[blob_to_message(blob) for blob in model.files])


def model_from_message(message: pb.Model) -> ModelFiles:
    return ModelFiles(
        digest=parse_digest(message.digest), files=tuple(blob_from_message(blob) for blob in message.files)
    )


def _ack_to_message(ack: ReportAck) -> pb.ReportAck:
    reason = reason_to_message(ack.reason) if ack.reason is not None else None
    return pb.ReportAck(lease_id=ack.lease_id, accepted=ack.accepted, reason=reason)


def _ack_from_message(message: pb.ReportAck) -> ReportAck:
    reason = reason_from_message(message.reason) if message.HasField("reason") else None
    return ReportAck(lease_id=lease_id_of(message.lease_id), accepted=message.accepted, reason=reason)


def _verdict_to_message(notice: VerdictNotice) -> pb.Verdict:
    return pb.Verdict(
        lease_id=notice.lease_id,
        verdict=notice.verdict,
        reason=reason_to_message(notice.reason),
        credit_flops=notice.credit_flops,
    )


def _verdict_from_message(message: pb.Verdict) -> VerdictNotice:
    return VerdictNotice(
        lease_id=lease_id_of(message.lease_id),
        verdict=text("verdict", message.verdict, least=1),
        reason=reason_from_message(message.reason),
        credit_flops=message.credit_flops,
    )


def _upload_to_message(order: UploadOrder) -> pb.UploadOrder:
    return pb.UploadOrder(
        lease_id=order.lease_id,
        name=order.name,
        digest=order.digest,
        size_bytes=order.size_bytes,
        path=order.path,
    )


def _upload_from_message(message: pb.UploadOrder) -> UploadOrder:
    return UploadOrder(
        lease_id=lease_id_of(message.lease_id),
        name=text("upload.name", message.name, least=1),
        digest=parse_digest(message.digest),
        size_bytes=integer("upload.size_bytes", message.size_bytes),
        path=message.path,
    )
