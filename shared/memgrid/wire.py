"""memgrid.v1 messages to values and back: here and nowhere else.

Every `…_from_message` checks what a stranger could lie about (sizes, ranges, forms) and raises InvalidError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from memgrid.digest import digest_of, parse_digest
from memgrid.enrolment import NONCE_BYTES, Challenge, EnrolAsk, Enrolment, LogInAsk, Session
from memgrid.errors import InvalidError
from memgrid.signing import SignedBody
from memgrid.units import (
    SKETCH_BYTES_MAX,
    AccountId,
    BlobRef,
    Cancellation,
    ComputeDtype,
    DeviceFacts,
    HeldLease,
    HostFacts,
    HostId,
    LeaseId,
    LeaseOffer,
    ModelFiles,
    Output,
    Reason,
    ReasonCode,
    Release,
    ReportAck,
    ReportClaim,
    SessionId,
    SyncAnswer,
    SyncAsk,
    UnitKey,
    UploadOrder,
    VerdictNotice,
    WorkFacts,
)
from memgrid.v1 import common_pb2 as common
from memgrid.v1 import volunteers_pb2 as pb

SYNC_BYTES_MAX = 8 << 20
"""The largest message of the control plane; a host with more to report sends it in several calls."""
SIGNED_BODY_BYTES_MAX = 1 << 20
REPORTS_MAX = 256
LEASES_MAX = 4096
OUTPUTS_MAX = 16
DEVICES_MAX = 64
TEXT_MAX = 256
_INTEGER_MAX = (1 << 63) - 1
_M = TypeVar("_M", bound=Message)


class ReportBatch(NamedTuple):
    """The reports of one Sync, as their host signed them."""

    host_id: HostId
    session_id: SessionId
    sequence: int
    reports: tuple[ReportClaim, ...]


def timestamp_to_message(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment.astimezone(UTC))
    return message


def timestamp_from_message(message: Timestamp) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidError("timestamp: outside the years 1 to 9999") from None


def duration_to_message(length: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(length)
    return message


def duration_from_message(message: Duration) -> timedelta:
    """A length of time from 0 to a day."""
    if not 0 <= message.seconds <= 86_400 or not 0 <= message.nanos < 1_000_000_000:
        raise InvalidError("duration: expected 0 to 86400 s")
    return timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def reason_to_message(reason: Reason) -> common.Reason:
    return common.Reason(code=reason.code, text=reason.text)


def reason_from_message(message: common.Reason) -> Reason:
    try:
        return Reason(code=ReasonCode(message.code), text=message.text[: 4 * TEXT_MAX])
    except ValueError:
        raise InvalidError(f"reason: unknown code {message.code[:80]!r}") from None


def signed_to_message(signed: SignedBody) -> common.Signed:
    return common.Signed(type=signed.type, body=signed.body, public_key=signed.public_key, signature=signed.signature)


def signed_from_message(message: common.Signed) -> SignedBody:
    """Bytes and a signature that has not been checked yet: call `verify` before parsing the body."""
    _at_most("signed body", len(message.body), SIGNED_BODY_BYTES_MAX)
    if len(message.public_key) != 32 or len(message.signature) != 64:
        raise InvalidError("signed body: expected a key of 32 bytes and a signature of 64")
    return SignedBody(
        type=_text("type", message.type),
        body=message.body,
        public_key=message.public_key,
        signature=message.signature,
    )


def blob_to_message(blob: BlobRef) -> common.Blob:
    return common.Blob(name=blob.name, digest=blob.digest, size_bytes=blob.size_bytes, path=blob.path)


def blob_from_message(message: common.Blob) -> BlobRef:
    return BlobRef(
        name=_text("blob.name", message.name),
        digest=parse_digest(message.digest),
        size_bytes=_integer("blob.size_bytes", message.size_bytes),
        path=message.path,
    )


def host_facts_to_message(facts: HostFacts) -> pb.HostFacts:
    devices = [
        pb.Device(
            kind=device.kind,
            name=device.name,
            memory_bytes=device.memory_bytes,
            numerics_class=device.numerics_class,
        )
        for device in facts.devices
    ]
    return pb.HostFacts(
        os=facts.os,
        arch=facts.arch,
        cpu_count=facts.cpu_count,
        memory_bytes=facts.memory_bytes,
        devices=devices,
        client_version=facts.client_version,
        isolation=facts.isolation,
    )


def host_facts_from_message(message: pb.HostFacts) -> HostFacts:
    _at_most("facts.devices", len(message.devices), DEVICES_MAX)
    devices = tuple(
        DeviceFacts(
            kind=_text("device.kind", device.kind),
            name=_text("device.name", device.name),
            memory_bytes=_integer("device.memory_bytes", device.memory_bytes),
            numerics_class=_text("device.numerics_class", device.numerics_class),
        )
        for device in message.devices
    )
    return HostFacts(
        os=_text("facts.os", message.os),
        arch=_text("facts.arch", message.arch),
        cpu_count=message.cpu_count,
        memory_bytes=_integer("facts.memory_bytes", message.memory_bytes),
        devices=devices,
        client_version=_text("facts.client_version", message.client_version),
        isolation=_text("facts.isolation", message.isolation),
    )


def challenge_to_message(challenge: Challenge) -> pb.Challenge:
    return pb.Challenge(nonce=challenge.nonce, expires_at=timestamp_to_message(challenge.expires_at))


def challenge_from_message(message: pb.Challenge) -> Challenge:
    return Challenge(nonce=_nonce(message.nonce), expires_at=timestamp_from_message(message.expires_at))


def enrol_to_body(ask: EnrolAsk) -> bytes:
    message = pb.EnrolRequest(
        nonce=ask.nonce,
        host_label=ask.host_label,
        facts=host_facts_to_message(ask.facts),
        invite_code=ask.invite_code,
    )
    return message.SerializeToString(deterministic=True)


def enrol_from_body(body: bytes) -> EnrolAsk:
    message = _parse(pb.EnrolRequest(), body)
    return EnrolAsk(
        nonce=_nonce(message.nonce),
        host_label=_text("host_label", message.host_label, least=1),
        facts=host_facts_from_message(message.facts),
        invite_code=_text("invite_code", message.invite_code),
    )


def enrolment_to_message(enrolment: Enrolment) -> pb.Enrolment:
    return pb.Enrolment(account_id=enrolment.account_id, host_id=enrolment.host_id)


def enrolment_from_message(message: pb.Enrolment) -> Enrolment:
    return Enrolment(
        account_id=AccountId(_text("account_id", message.account_id, least=1)),
        host_id=HostId(_text("host_id", message.host_id, least=1)),
    )


def log_in_to_body(ask: LogInAsk) -> bytes:
    message = pb.LogInRequest(nonce=ask.nonce, host_id=ask.host_id, facts=host_facts_to_message(ask.facts))
    return message.SerializeToString(deterministic=True)


def log_in_from_body(body: bytes) -> LogInAsk:
    message = _parse(pb.LogInRequest(), body)
    return LogInAsk(
        nonce=_nonce(message.nonce),
        host_id=HostId(_text("host_id", message.host_id, least=1)),
        facts=host_facts_from_message(message.facts),
    )


def session_to_message(session: Session) -> pb.Session:
    return pb.Session(
        session_id=session.session_id,
        token=session.token,
        expires_at=timestamp_to_message(session.expires_at),
    )


def session_from_message(message: pb.Session) -> Session:
    return Session(
        session_id=SessionId(_text("session_id", message.session_id, least=1)),
        token=message.token,
        expires_at=timestamp_from_message(message.expires_at),
    )


def work_facts_to_message(facts: WorkFacts) -> pb.WorkFacts:
    return pb.WorkFacts(
        tokens=facts.tokens,
        compute_s=facts.compute_s,
        device_kind=facts.device_kind,
        numerics_class=facts.numerics_class,
        compute_dtype=facts.compute_dtype,
        torch_version=facts.torch_version,
    )


def work_facts_from_message(message: pb.WorkFacts) -> WorkFacts:
    try:
        compute_dtype = ComputeDtype(message.compute_dtype)
    except ValueError:
        raise InvalidError(f"facts.compute_dtype: unknown {message.compute_dtype[:80]!r}") from None
    return WorkFacts(
        tokens=_integer("facts.tokens", message.tokens),
        compute_s=_real("facts.compute_s", message.compute_s, 0, 1e9),
        device_kind=_text("facts.device_kind", message.device_kind),
        numerics_class=_text("facts.numerics_class", message.numerics_class),
        compute_dtype=compute_dtype,
        torch_version=_text("facts.torch_version", message.torch_version),
    )


def report_to_message(claim: ReportClaim) -> pb.Report:
    outputs = [
        pb.Output(name=output.name, digest=output.digest, size_bytes=output.size_bytes) for output in claim.outputs
    ]
    return pb.Report(
        lease_id=claim.lease_id,
        fence=claim.fence,
        unit_key=claim.unit_key,
        outputs=outputs,
        sketch_digest=claim.sketch_digest,
        facts=work_facts_to_message(claim.facts),
    )


def report_from_message(message: pb.Report) -> ReportClaim:
    _at_most("report.outputs", len(message.outputs), OUTPUTS_MAX)
    outputs = tuple(
        Output(
            name=_text("output.name", output.name, least=1),
            digest=parse_digest(output.digest),
            size_bytes=_integer("output.size_bytes", output.size_bytes),
        )
        for output in message.outputs
    )
    return ReportClaim(
        lease_id=_lease_id(message.lease_id),
        fence=_integer("report.fence", message.fence),
        unit_key=_unit_key(message.unit_key),
        outputs=outputs,
        sketch_digest=parse_digest(message.sketch_digest),
        facts=work_facts_from_message(message.facts),
    )


def reports_to_body(
    *, host_id: HostId, session_id: SessionId, sequence: int, reports: Iterable[ReportClaim]
) -> bytes:
    """What a host signs, as REPORTS_TYPE."""
    message = pb.ReportBatch(
        host_id=host_id,
        session_id=session_id,
        sequence=sequence,
        reports=[report_to_message(report) for report in reports],
    )
    return message.SerializeToString(deterministic=True)


def reports_from_body(body: bytes) -> ReportBatch:
    """Parse a body whose signature has held."""
    message = _parse(pb.ReportBatch(), body)
    _at_most("reports", len(message.reports), REPORTS_MAX)
    return ReportBatch(
        host_id=HostId(_text("host_id", message.host_id, least=1)),
        session_id=SessionId(_text("session_id", message.session_id, least=1)),
        sequence=_integer("sequence", message.sequence),
        reports=tuple(report_from_message(report) for report in message.reports),
    )


def sync_ask_to_message(ask: SyncAsk, reports: SignedBody | None) -> pb.SyncRequest:
    """`ask.reports` does not travel as such: `reports` is the signed batch that holds them."""
    held = [pb.HeldLease(lease_id=lease.lease_id, fence=lease.fence, progress=lease.progress) for lease in ask.held]
    released = [
        pb.Release(lease_id=lease.lease_id, fence=lease.fence, reason=reason_to_message(lease.reason))
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
    )


def sync_ask_from_message(message: pb.SyncRequest) -> tuple[SyncAsk, SignedBody | None]:
    """The ask with empty `reports`, and the signed batch to verify, parse and put there."""
    _at_most("held", len(message.held), LEASES_MAX)
    _at_most("awaiting", len(message.awaiting), LEASES_MAX)
    _at_most("released", len(message.released), LEASES_MAX)
    _at_most("sketches", len(message.sketches), REPORTS_MAX)
    for sketch in message.sketches:
        _at_most("sketch", len(sketch), SKETCH_BYTES_MAX)
    _at_most("want", message.want, LEASES_MAX)
    ask = SyncAsk(
        sequence=_integer("sequence", message.sequence),
        held=tuple(_held_from_message(lease) for lease in message.held),
        awaiting=tuple(_lease_id(lease_id) for lease_id in message.awaiting),
        reports=(),
        sketches={digest_of(sketch): sketch for sketch in message.sketches},
        released=tuple(_release_from_message(lease) for lease in message.released),
        want=message.want,
        wait=duration_from_message(message.wait),
    )
    return ask, signed_from_message(message.reports) if message.HasField("reports") else None


def _held_from_message(message: pb.HeldLease) -> HeldLease:
    return HeldLease(
        lease_id=_lease_id(message.lease_id),
        fence=_integer("held.fence", message.fence),
        progress=_real("held.progress", message.progress, 0, 1),
    )


def _release_from_message(message: pb.Release) -> Release:
    return Release(
        lease_id=_lease_id(message.lease_id),
        fence=_integer("released.fence", message.fence),
        reason=reason_from_message(message.reason),
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
            Cancellation(lease_id=_lease_id(lease.lease_id), reason=reason_from_message(lease.reason))
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
    )


def lease_from_message(message: pb.Lease) -> LeaseOffer:
    return LeaseOffer(
        lease_id=_lease_id(message.lease_id),
        fence=_integer("lease.fence", message.fence),
        unit_key=_unit_key(message.unit_key),
        spec=message.spec,
        model=parse_digest(message.model),
        inputs=tuple(blob_from_message(blob) for blob in message.inputs),
        deadline_at=timestamp_from_message(message.deadline_at),
        estimate_s=_real("lease.estimate_s", message.estimate_s, 0, 1e9),
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
    return ReportAck(lease_id=_lease_id(message.lease_id), accepted=message.accepted, reason=reason)


def _verdict_to_message(notice: VerdictNotice) -> pb.Verdict:
    return pb.Verdict(
        lease_id=notice.lease_id,
        verdict=notice.verdict,
        reason=reason_to_message(notice.reason),
        credit_flops=notice.credit_flops,
    )


def _verdict_from_message(message: pb.Verdict) -> VerdictNotice:
    return VerdictNotice(
        lease_id=_lease_id(message.lease_id),
        verdict=_text("verdict", message.verdict, least=1),
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
        lease_id=_lease_id(message.lease_id),
        name=_text("upload.name", message.name, least=1),
        digest=parse_digest(message.digest),
        size_bytes=_integer("upload.size_bytes", message.size_bytes),
        path=message.path,
    )


def _parse(message: _M, body: bytes) -> _M:
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise InvalidError(f"body: not a {type(message).__name__}") from None
    return message


def _text(name: str, value: str, *, least: int = 0) -> str:
    if not least <= len(value) <= TEXT_MAX:
        raise InvalidError(f"{name}: expected {least} to {TEXT_MAX} characters, found {len(value)}")
    return value


def _lease_id(value: str) -> LeaseId:
    return LeaseId(_text("lease_id", value, least=1))


def _unit_key(value: str) -> UnitKey:
    return UnitKey(parse_digest(f"sha256:{value}").removeprefix("sha256:"))


def _nonce(value: bytes) -> bytes:
    if len(value) != NONCE_BYTES:
        raise InvalidError(f"nonce: expected {NONCE_BYTES} bytes, found {len(value)}")
    return value


def _integer(name: str, value: int) -> int:
    # A database column holds 63 bits, a protobuf field 64.
    _at_most(name, value, _INTEGER_MAX)
    return value


def _real(name: str, value: float, least: float, most: float) -> float:
    if not (math.isfinite(value) and least <= value <= most):
        raise InvalidError(f"{name}: expected {least:g} to {most:g}, found {value:g}")
    return value


def _at_most(name: str, found: int, limit: int) -> None:
    if found > limit:
        raise InvalidError(f"{name}: expected at most {limit}, found {found}")
