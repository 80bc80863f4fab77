"""Challenges, enrolments and sessions on the wire."""

from __future__ import annotations

from memgrid.enrolment import NONCE_BYTES, Challenge, EnrolAsk, Enrolment, LogInAsk, Session
from memgrid.errors import InvalidError
from memgrid.units import AccountId, DeviceFacts, HostFacts, HostId, SessionId
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.wire.basics import at_most, integer, parse, text, timestamp_from_message, timestamp_to_message

DEVICES_MAX = 64


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
    at_most("facts.devices", len(message.devices), DEVICES_MAX)
    devices = tuple(
        DeviceFacts(
            kind=text("device.kind", device.kind),
            name=text("device.name", device.name),
            memory_bytes=integer("device.memory_bytes", device.memory_bytes),
            numerics_class=text("device.numerics_class", device.numerics_class),
        )
        for device in message.devices
    )
    return HostFacts(
        os=text("facts.os", message.os),
        arch=text("facts.arch", message.arch),
        cpu_count=message.cpu_count,
        memory_bytes=integer("facts.memory_bytes", message.memory_bytes),
        devices=devices,
        client_version=text("facts.client_version", message.client_version),
        isolation=text("facts.isolation", message.isolation),
    )


def challenge_to_message(challenge: Challenge) -> pb.Challenge:
    return pb.Challenge(nonce=challenge.nonce, expires_at=timestamp_to_message(challenge.expires_at))


def challenge_from_message(message: pb.Challenge) -> Challenge:
    return Challenge(nonce=nonce_from_message(message.nonce), expires_at=timestamp_from_message(message.expires_at))


def enrol_to_body(ask: EnrolAsk) -> bytes:
    message = pb.EnrolRequest(
        nonce=ask.nonce,
        host_label=ask.host_label,
        facts=host_facts_to_message(ask.facts),
        invite_code=ask.invite_code,
    )
    return message.SerializeToString(deterministic=True)


def enrol_from_body(body: bytes) -> EnrolAsk:
    message = parse(pb.EnrolRequest(), body)
    return EnrolAsk(
        nonce=nonce_from_message(message.nonce),
        host_label=text("host_label", message.host_label, least=1),
        facts=host_facts_from_message(message.facts),
        invite_code=text("invite_code", message.invite_code),
    )


def enrolment_to_message(enrolment: Enrolment) -> pb.Enrolment:
    return pb.Enrolment(account_id=enrolment.account_id, host_id=enrolment.host_id)


def enrolment_from_message(message: pb.Enrolment) -> Enrolment:
    return Enrolment(
        account_id=AccountId(text("account_id", message.account_id, least=1)),
        host_id=HostId(text("host_id", message.host_id, least=1)),
    )


def log_in_to_body(ask: LogInAsk) -> bytes:
    message = pb.LogInRequest(nonce=ask.nonce, host_id=ask.host_id, facts=host_facts_to_message(ask.facts))
    return message.SerializeToString(deterministic=True)


def log_in_from_body(body: bytes) -> LogInAsk:
    message = parse(pb.LogInRequest(), body)
    return LogInAsk(
        nonce=nonce_from_message(message.nonce),
        host_id=HostId(text("host_id", message.host_id, least=1)),
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
        session_id=SessionId(text("session_id", message.session_id, least=1)),
        token=message.token,
        expires_at=timestamp_from_message(message.expires_at),
    )


def nonce_from_message(value: bytes) -> bytes:
    """Raises InvalidError for one of another length."""
    if len(value) != NONCE_BYTES:
        raise InvalidError(f"nonce: expected {NONCE_BYTES} bytes, found {len(value)}")
    return value
