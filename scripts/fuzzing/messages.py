"""Messages of the control plane: what hosts send the grid, and what a grid sends hosts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from google.protobuf.message import DecodeError, Message

from fuzzing import samples
from fuzzing.driver import Target
from fuzzing.mutation import spoil_message
from memgrid import wire
from memgrid.digest import digest_of
from memgrid.enrolment import Challenge, EnrolAsk, Enrolment, LogInAsk, Session
from memgrid.signing import ENROL_TYPE, REPORTS_TYPE, SigningKey
from memgrid.testing import FACTS
from memgrid.units import (
    AccountId,
    Cancellation,
    HeldLease,
    HostId,
    LeaseId,
    ModelFiles,
    Reason,
    ReasonCode,
    Release,
    ReportAck,
    SessionId,
    StoreDtype,
    SyncAnswer,
    SyncAsk,
    UploadOrder,
    VerdictNotice,
    Wishes,
)
from memgrid.v1 import campaigns_pb2, common_pb2
from memgrid.v1 import volunteers_pb2 as pb
from memgrid_coordinator.rpc.campaigns import source_from_message

KEY = SigningKey.generate()
NONCE = bytes(32)
REASON = Reason(code=ReasonCode.OWNER_PAUSED, text="game night")
LEASE = LeaseId("a" * 32)


def targets() -> tuple[Target, ...]:
    return (
        _of("sync", "a host's Sync, with its signed reports", pb.SyncRequest, _sync, [_sync_request()]),
        _of("sync_answer", "a grid's answer to a Sync", pb.SyncResponse, _sync_answer, [_sync_response()]),
        _of("signed", "a signed body, as it comes", common_pb2.Signed, _signed, [_signed_enrolment()]),
        _body("enrol", "a signed enrolment's body", pb.EnrolRequest, wire.enrol_from_body, _enrol_body()),
        _body("log_in", "a signed log-in's body", pb.LogInRequest, wire.log_in_from_body, _log_in_body()),
        _body("reports", "a signed batch of reports", pb.ReportBatch, wire.reports_from_body, _reports_body()),
        _of("challenge", "a grid's challenge", pb.Challenge, wire.challenge_from_message, [_challenge()]),
        _of(
            "enrolment", "a grid's answer to an enrolment", pb.Enrolment, wire.enrolment_from_message, [_enrolment()]
        ),
        _of("session", "a grid's answer to a log-in", pb.Session, wire.session_from_message, [_session()]),
        _of("submission", "a submitted campaign's sources", campaigns_pb2.SubmitRequest, _submit, [_submission()]),
    )


def _of(name: str, about: str, kind: type[Message], run: Callable[[Any], object], seeds: list[Message]) -> Target:
    contents = [seed.SerializeToString() for seed in seeds]

    def parse(content: bytes) -> object:
        message = kind()
        message.ParseFromString(content)
        return run(message)

    # gRPC itself turns down what is no such message.
    return Target(
        name=name,
        about=about,
        seeds=lambda: contents,
        run=parse,
        mutators=(spoil_message(kind),) * 3,
        allowed=(DecodeError,),
    )


def _body(name: str, about: str, kind: type[Message], run: Callable[[bytes], object], seed: bytes) -> Target:
    return Target(name=name, about=about, seeds=lambda: [seed], run=run, mutators=(spoil_message(kind),) * 3)


def _sync(message: pb.SyncRequest) -> object:
    ask, signed = wire.sync_ask_from_message(message)
    again, _ = wire.sync_ask_from_message(wire.sync_ask_to_message(ask, None))
    assert again == ask, "what was read is written otherwise"
    if signed is not None:
        wire.reports_from_body(signed.body)
        signed.verify(REPORTS_TYPE)
    return ask


def _sync_answer(message: pb.SyncResponse) -> object:
    answer = wire.sync_answer_from_message(message)
    assert wire.sync_answer_from_message(wire.sync_answer_to_message(answer)) == answer, "written otherwise"
    return answer


def _signed(message: common_pb2.Signed) -> object:
    wire.signed_from_message(message).verify(ENROL_TYPE)
    assert message.body == _enrol_body(), "a body that nobody signed was believed"
    return None


def _submit(message: campaigns_pb2.SubmitRequest) -> object:
    return [source_from_message(source) for source in message.sources]


def _sync_request() -> pb.SyncRequest:
    ask = SyncAsk(
        sequence=7,
        held=(HeldLease(lease_id=LEASE, fence=2, progress=0.5),),
        awaiting=(LEASE,),
        reports=(),
        sketches={digest_of(b"sketch"): b"sketch"},
        released=(Release(lease_id=LEASE, fence=3, reason=REASON),),
        want=2,
        wait=timedelta(seconds=20),
        wishes=Wishes(
            kinds=frozenset({"prefill"}),
            campaigns=frozenset({"handbook"}),
            avoided_campaigns=frozenset({"another"}),
            cached_models=frozenset({digest_of(b"model")}),
            longest=timedelta(minutes=5),
        ),
    )
    return wire.sync_ask_to_message(ask, KEY.sign(REPORTS_TYPE, _reports_body()))


def _sync_response() -> pb.SyncResponse:
    spec = samples.prefill_spec()
    offer = samples.offer(spec)
    return wire.sync_answer_to_message(
        SyncAnswer(
            leases=(offer, replace(offer, inputs=())),
            models=(ModelFiles(digest=spec.model, files=offer.inputs),),
            acks=(ReportAck(lease_id=LEASE, accepted=False, reason=REASON),),
            verdicts=(VerdictNotice(lease_id=LEASE, verdict="agreed", reason=REASON, credit_flops=5),),
            uploads=(
                UploadOrder(lease_id=LEASE, name="kv.safetensors", digest=spec.tokens, size_bytes=9, path="/v2/x"),
            ),
            cancelled=(Cancellation(lease_id=LEASE, reason=REASON),),
            idle_reason=REASON,
            call_again_in=timedelta(seconds=3),
        )
    )


def _reports_body() -> bytes:
    claim = samples.prefill_work(StoreDtype.BFLOAT16).claim
    return wire.reports_to_body(host_id=HostId("h"), session_id=SessionId("s"), sequence=7, reports=[claim, claim])


def _enrol_body() -> bytes:
    return wire.enrol_to_body(EnrolAsk(nonce=NONCE, host_label="attic", facts=FACTS, invite_code="code"))


def _log_in_body() -> bytes:
    return wire.log_in_to_body(LogInAsk(nonce=NONCE, host_id=HostId("h"), facts=FACTS))


def _signed_enrolment() -> common_pb2.Signed:
    return wire.signed_to_message(KEY.sign(ENROL_TYPE, _enrol_body()))


def _challenge() -> pb.Challenge:
    return wire.challenge_to_message(Challenge(nonce=NONCE, expires_at=samples.NOW))


def _enrolment() -> pb.Enrolment:
    return wire.enrolment_to_message(Enrolment(account_id=AccountId("a"), host_id=HostId("h")))


def _session() -> pb.Session:
    session = Session(session_id=SessionId("s"), token="host.x.y", expires_at=samples.NOW)
    return wire.session_to_message(session)


def _submission() -> campaigns_pb2.SubmitRequest:
    source = campaigns_pb2.Source(uri="a.txt", digest=samples.digest(), format="txt", licence="CC-BY-4.0")
    return campaigns_pb2.SubmitRequest(request_id="r", campaign=b"{}", sources=[source])
