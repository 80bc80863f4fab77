"""Values survive the wire; what a stranger could lie about is refused at the door."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid import wire
from memgrid.digest import Digest, digest_of
from memgrid.enrolment import Challenge, EnrolAsk, Enrolment, LogInAsk, Session
from memgrid.errors import InvalidError
from memgrid.signing import REPORTS_TYPE, SigningKey
from memgrid.units import (
    SKETCH_BYTES_MAX,
    AccountId,
    BlobRef,
    Cancellation,
    CheckpointRef,
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
    Wishes,
    WorkFacts,
)
from memgrid.v1 import volunteers_pb2 as pb

words = st.text(min_size=1, max_size=40)
counts = st.integers(0, 2**63 - 1)
digests = st.binary(max_size=8).map(digest_of)
unit_keys = digests.map(lambda digest: UnitKey(digest.removeprefix("sha256:")))
lease_ids = words.map(LeaseId)
moments = st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
lengths = st.timedeltas(timedelta(0), timedelta(days=1))
reasons = st.builds(Reason, code=st.sampled_from(ReasonCode), text=st.text(max_size=100))
blobs = st.builds(BlobRef, name=words, digest=digests, size_bytes=counts, path=words)
devices = st.builds(DeviceFacts, kind=words, name=words, memory_bytes=counts, numerics_class=words)
host_facts = st.builds(
    HostFacts,
    os=words,
    arch=words,
    cpu_count=st.integers(1, 4096),
    memory_bytes=counts,
    devices=st.lists(devices, max_size=3).map(tuple),
    client_version=words,
    isolation=words,
)
facts = st.builds(
    WorkFacts,
    tokens=counts,
    compute_s=st.floats(0, 1e6),
    device_kind=words,
    numerics_class=words,
    compute_dtype=st.sampled_from(ComputeDtype),
    torch_version=words,
)
progresses = st.sampled_from([0.0, 0.5, 1.0])
checkpoints = st.builds(CheckpointRef, digest=digests, size_bytes=counts, progress=progresses, path=words)
outputs = st.builds(Output, name=words, digest=digests, size_bytes=counts)
claims = st.builds(
    ReportClaim,
    lease_id=lease_ids,
    fence=counts,
    unit_key=unit_keys,
    outputs=st.lists(outputs, max_size=2).map(tuple),
    sketch_digest=digests,
    facts=facts,
)


wishes = st.builds(
    Wishes,
    kinds=st.frozensets(words, max_size=3),
    campaigns=st.frozensets(words, max_size=3),
    avoided_campaigns=st.frozensets(words, max_size=3),
    cached_models=st.frozensets(digests, max_size=3),
    longest=st.none() | lengths,
)


def some(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(values, max_size=3).map(tuple)


@given(host_facts)
def test_host_facts_survive_the_wire(value: HostFacts) -> None:
    assert wire.host_facts_from_message(wire.host_facts_to_message(value)) == value


@given(host_facts, st.binary(min_size=32, max_size=32), moments)
def test_enrolment_values_survive_the_wire(value: HostFacts, nonce: bytes, moment: datetime) -> None:
    enrol = EnrolAsk(nonce=nonce, host_label="attic", facts=value, invite_code="")
    assert wire.enrol_from_body(wire.enrol_to_body(enrol)) == enrol
    log_in = LogInAsk(nonce=nonce, host_id=HostId("h1"), facts=value)
    assert wire.log_in_from_body(wire.log_in_to_body(log_in)) == log_in
    challenge = Challenge(nonce=nonce, expires_at=moment)
    assert wire.challenge_from_message(wire.challenge_to_message(challenge)) == challenge
    session = Session(session_id=SessionId("s"), token="t", expires_at=moment)
    assert wire.session_from_message(wire.session_to_message(session)) == session
    enrolment = Enrolment(account_id=AccountId("a"), host_id=HostId("h"))
    assert wire.enrolment_from_message(wire.enrolment_to_message(enrolment)) == enrolment


@given(some(claims), counts)
def test_reports_survive_the_wire(reports: tuple[ReportClaim, ...], sequence: int) -> None:
    body = wire.reports_to_body(host_id=HostId("h"), session_id=SessionId("s"), sequence=sequence, reports=reports)
    assert wire.reports_from_body(body) == (HostId("h"), SessionId("s"), sequence, reports)


@given(
    st.builds(
        SyncAsk,
        sequence=counts,
        held=some(st.builds(HeldLease, lease_id=lease_ids, fence=counts, progress=progresses)),
        awaiting=some(lease_ids),
        reports=st.just(()),
        sketches=st.lists(st.binary(max_size=9), max_size=3).map(
            lambda all_of_them: {digest_of(sketch): sketch for sketch in all_of_them}
        ),
        released=some(
            st.builds(Release, lease_id=lease_ids, fence=counts, reason=reasons, checkpoint=st.none() | checkpoints)
        ),
        want=st.integers(0, 100),
        wait=lengths,
        wishes=wishes,
    ),
    st.booleans(),
)
def test_a_sync_survives_the_wire(ask: SyncAsk, with_reports: bool) -> None:
    signed = SigningKey.generate().sign(REPORTS_TYPE, b"body") if with_reports else None
    sent = pb.SyncRequest.FromString(wire.sync_ask_to_message(ask, signed).SerializeToString())
    assert wire.sync_ask_from_message(sent) == (ask, signed)


offers = st.builds(
    LeaseOffer,
    lease_id=lease_ids,
    fence=counts,
    unit_key=unit_keys,
    spec=st.binary(max_size=30),
    model=digests,
    inputs=some(blobs),
    deadline_at=moments,
    estimate_s=st.floats(0, 1e6),
    checkpoint=st.none() | checkpoints,
)


@given(
    st.builds(
        SyncAnswer,
        leases=some(offers),
        models=some(st.builds(ModelFiles, digest=digests, files=some(blobs))),
        acks=some(st.builds(ReportAck, lease_id=lease_ids, accepted=st.booleans(), reason=st.none() | reasons)),
        verdicts=some(
            st.builds(VerdictNotice, lease_id=lease_ids, verdict=words, reason=reasons, credit_flops=counts)
        ),
        uploads=some(
            st.builds(UploadOrder, lease_id=lease_ids, name=words, digest=digests, size_bytes=counts, path=words)
        ),
        cancelled=some(st.builds(Cancellation, lease_id=lease_ids, reason=reasons)),
        idle_reason=st.none() | reasons,
        call_again_in=lengths,
    )
)
def test_an_answer_survives_the_wire(answer: SyncAnswer) -> None:
    sent = pb.SyncResponse.FromString(wire.sync_answer_to_message(answer).SerializeToString())
    assert wire.sync_answer_from_message(sent) == answer


@given(st.binary(max_size=300))
def test_garbage_is_invalid_and_nothing_worse(body: bytes) -> None:
    for parse in (wire.reports_from_body, wire.enrol_from_body, wire.log_in_from_body):
        try:
            parse(body)
        except InvalidError:
            continue


def test_an_oversized_sketch_is_refused() -> None:
    message = pb.SyncRequest(sketches=[b"\0" * (SKETCH_BYTES_MAX + 1)])
    with pytest.raises(InvalidError, match="sketch: expected at most 524288, found 524289"):
        wire.sync_ask_from_message(message)


def test_a_host_of_before_wishes_wishes_nothing() -> None:
    ask, _ = wire.sync_ask_from_message(pb.SyncRequest.FromString(pb.SyncRequest(want=2).SerializeToString()))
    assert ask.wishes == Wishes() and not ask.wishes.are_picky


def test_endless_wishes_are_refused() -> None:
    message = pb.SyncRequest(wishes=pb.Wishes(campaigns=["c"] * 257))
    with pytest.raises(InvalidError, match=r"wishes\.campaigns: expected at most 256, found 257"):
        wire.sync_ask_from_message(message)


def test_too_many_reports_are_refused() -> None:
    body = pb.ReportBatch(host_id="h", session_id="s", reports=[pb.Report()] * 257).SerializeToString()
    with pytest.raises(InvalidError, match="reports: expected at most 256, found 257"):
        wire.reports_from_body(body)


@pytest.mark.parametrize("progress", [float("nan"), float("inf"), -0.1, 1.5])
def test_impossible_progress_is_refused(progress: float) -> None:
    message = pb.SyncRequest(held=[pb.HeldLease(lease_id="l", fence=1, progress=progress)])
    with pytest.raises(InvalidError, match="progress"):
        wire.sync_ask_from_message(message)


def test_a_fence_that_no_database_column_holds_is_refused() -> None:
    message = pb.SyncRequest(held=[pb.HeldLease(lease_id="l", fence=1 << 63, progress=0)])
    with pytest.raises(InvalidError, match="fence"):
        wire.sync_ask_from_message(message)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "0" * 64])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    report = wire.report_to_message(_claim(digest_of(b"")))
    report.sketch_digest = digest
    with pytest.raises(InvalidError, match="expected a digest"):
        wire.report_from_message(report)


def test_a_short_signature_is_refused_before_it_is_checked() -> None:
    signed = wire.signed_to_message(SigningKey.generate().sign(REPORTS_TYPE, b""))
    signed.signature = b"short"
    with pytest.raises(InvalidError, match="signature of 64"):
        wire.signed_from_message(signed)


def _claim(digest: Digest) -> ReportClaim:
    return ReportClaim(
        lease_id=LeaseId("l"),
        fence=1,
        unit_key=UnitKey("0" * 64),
        outputs=(),
        sketch_digest=digest,
        facts=WorkFacts(
            tokens=1,
            compute_s=1.0,
            device_kind="cpu",
            numerics_class="cpu",
            compute_dtype=ComputeDtype.FLOAT32,
            torch_version="2",
        ),
    )
