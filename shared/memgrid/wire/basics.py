"""Times, reasons, signatures and blobs on the wire, and the checks that every other value uses."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from memgrid.digest import parse_digest
from memgrid.errors import InvalidError
from memgrid.signing import SignedBody
from memgrid.units import BlobRef, LeaseId, Reason, ReasonCode, UnitKey
from memgrid.v1 import common_pb2 as common

SIGNED_BODY_BYTES_MAX = 1 << 20
TEXT_MAX = 256
_INTEGER_MAX = (1 << 63) - 1
_M = TypeVar("_M", bound=Message)


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
    """A code this release does not know is no error: grids and volunteers are updated at different times."""
    text_max = 4 * TEXT_MAX
    try:
        return Reason(code=ReasonCode(message.code), text=message.text[:text_max])
    except ValueError:
        return Reason(code=ReasonCode.OTHER, text=f"{message.code[:80]}: {message.text}"[:text_max])


def signed_to_message(signed: SignedBody) -> common.Signed:
    return common.Signed(type=signed.type, body=signed.body, public_key=signed.public_key, signature=signed.signature)


def signed_from_message(message: common.Signed) -> SignedBody:
    """Bytes and a signature that has not been checked yet: call `verify` before parsing the body."""
    at_most("signed body", len(message.body), SIGNED_BODY_BYTES_MAX)
    if len(message.public_key) != 32 or len(message.signature) != 64:
        raise InvalidError("signed body: expected a key of 32 bytes and a signature of 64")
    return SignedBody(
        type=text("type", message.type),
        body=message.body,
        public_key=message.public_key,
        signature=message.signature,
    )


def blob_to_message(blob: BlobRef) -> common.Blob:
    return common.Blob(name=blob.name, digest=blob.digest, size_bytes=blob.size_bytes, path=blob.path)


def blob_from_message(message: common.Blob) -> BlobRef:
    return BlobRef(
        name=text("blob.name", message.name),
        digest=parse_digest(message.digest),
        size_bytes=integer("blob.size_bytes", message.size_bytes),
        path=message.path,
    )


def parse(message: _M, body: bytes) -> _M:
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise InvalidError(f"body: not a {type(message).__name__}") from None
    return message


def text(name: str, value: str, *, least: int = 0) -> str:
    if not least <= len(value) <= TEXT_MAX:
        raise InvalidError(f"{name}: expected {least} to {TEXT_MAX} characters, found {len(value)}")
    return value


def lease_id_of(value: str) -> LeaseId:
    return LeaseId(text("lease_id", value, least=1))


def unit_key_from(value: str) -> UnitKey:
    return UnitKey(parse_digest(f"sha256:{value}").removeprefix("sha256:"))


def integer(name: str, value: int) -> int:
    # A database column holds 63 bits, a protobuf field 64.
    at_most(name, value, _INTEGER_MAX)
    return value


def real(name: str, value: float, least: float, most: float) -> float:
    if not (math.isfinite(value) and least <= value <= most):
        raise InvalidError(f"{name}: expected {least:g} to {most:g}, found {value:g}")
    return value


def at_most(name: str, found: int, limit: int) -> None:
    if found > limit:
        raise InvalidError(f"{name}: expected at most {limit}, found {found}")
