"""A gRPC channel that carries the token, stays alive, and raises our errors."""

from __future__ import annotations

import asyncio
import json
import math
import random
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from memgrid.endpoint import CERTIFICATE_NAME, GridEndpoint
from memgrid.errors import (
    BusyError,
    ErrorCode,
    InternalError,
    MemgridError,
    TooLargeError,
    UnavailableError,
)
from memgrid.wire import SYNC_BYTES_MAX

ERROR_CODE_KEY = "memgrid-error-code"
"""Trailing metadata in which a server names the error; the status details are its message."""
WAIT_MS_KEY = "memgrid-wait-ms"
"""Trailing metadata of a BusyError: when to ask again."""
TICKET_KEY = "memgrid-ticket"
"""Trailing metadata of a BusyError, and metadata of the call that keeps the appointment."""
BACKOFF_MAX_S = 60.0
WAIT_MAX_S = 600.0
"""The longest a server may send somebody away for."""

STATUS_BY_CODE: dict[ErrorCode, grpc.StatusCode] = {
    ErrorCode.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.AMBIGUOUS_ID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.BAD_SIGNATURE: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.BAD_CHALLENGE: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.TOKEN_REQUIRED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.TOKEN_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.SESSION_REPLACED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.UNTRUSTED_GRID: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.INVITE_REQUIRED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.NOT_ALLOWED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.STALE_SEQUENCE: grpc.StatusCode.ABORTED,
    ErrorCode.UNKNOWN_HOST: grpc.StatusCode.NOT_FOUND,
    ErrorCode.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    ErrorCode.UNKNOWN_SOURCE: grpc.StatusCode.NOT_FOUND,
    ErrorCode.UNKNOWN_CAMPAIGN: grpc.StatusCode.NOT_FOUND,
    ErrorCode.UNKNOWN_ID: grpc.StatusCode.NOT_FOUND,
    ErrorCode.UNKNOWN_CUBE: grpc.StatusCode.NOT_FOUND,
    ErrorCode.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.DIGEST_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.NOT_VERIFIED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.DOES_NOT_FIT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.BUSY: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.DRAINING: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""What a gRPC peer that knows nothing of memgrid sees for each of our errors."""

SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", SYNC_BYTES_MAX),
    ("grpc.max_send_message_length", SYNC_BYTES_MAX),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # A volunteer pings every 30 s while a long poll is open; gRPC's default would hang up on that.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
]
"""For the server at the other end of `open_channel`."""

# Volunteers retry by themselves, slowly and with jitter; people at a terminal want one quick second try.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "memgrid.v1.Campaigns"}, {"service": "memgrid.v1.Grid"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", SYNC_BYTES_MAX),
    ("grpc.max_send_message_length", SYNC_BYTES_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own reconnect pause grows to two minutes by default: callers here bring their own.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
]


def open_channel(endpoint: GridEndpoint, token: Callable[[], str | None]) -> grpc.aio.Channel:
    """A channel to the grid's control plane; `token` is asked anew at every call.

    Calls on it raise MemgridError: the very class the server raised, UnavailableError when nobody answers.
    Must be called inside a running event loop; close it with `await channel.close()`.
    """
    options = list(_CHANNEL_OPTIONS)
    interceptors: list[grpc.aio.ClientInterceptor] = [_UnaryCalls(token), _StreamCalls(token)]
    if endpoint.is_loopback:
        options.append(("grpc.enable_http_proxy", 0))
    if not endpoint.is_encrypted:
        return grpc.aio.insecure_channel(endpoint.grpc_target, options=options, interceptors=interceptors)
    if endpoint.certificate_pem is not None:
        roots: bytes | None = endpoint.certificate_pem.encode()
        # The exact certificate is pinned, so the name it carries says nothing more.
        options.append(("grpc.ssl_target_name_override", CERTIFICATE_NAME))
    else:
        roots = _system_roots()
    credentials = grpc.ssl_channel_credentials(root_certificates=roots)
    return grpc.aio.secure_channel(endpoint.grpc_target, credentials, options=options, interceptors=interceptors)


def backoff_s(attempt: int, rng: random.Random) -> float:
    """How long to wait before trying again after `attempt` failures (1, 2, …), in seconds.

    Exponential with full jitter, so that a restarted coordinator is not met by everybody at once.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    >>> 0 <= backoff_s(3, random.Random(7)) <= 8
    True
    """
    return rng.uniform(0, min(BACKOFF_MAX_S, 2.0 ** min(attempt, 16)))


def told_wait_s(busy: BusyError, rng: random.Random) -> float:
    """How long to wait before asking a busy grid again, in seconds: as told, and up to a quarter more.

    >>> 12 <= told_wait_s(BusyError("the grid has its hands full", wait_s=12), random.Random(7)) <= 15
    True
    """
    return busy.wait_s * rng.uniform(1.0, 1.25)


def trailing_of(error: MemgridError) -> tuple[tuple[str, str], ...]:
    """What a server sends behind a call that failed; `error_of` reads it."""
    trailing = ((ERROR_CODE_KEY, error.code.value),)
    if not isinstance(error, BusyError):
        return trailing
    ticket = ((TICKET_KEY, error.ticket),) if error.ticket else ()
    return (*trailing, (WAIT_MS_KEY, str(math.ceil(1e3 * error.wait_s))), *ticket)


def error_of(status: grpc.StatusCode, details: str, trailing: grpc.aio.Metadata | None) -> MemgridError:
    """The error a failed call stands for."""
    code = _text(trailing, ERROR_CODE_KEY)
    if code == ErrorCode.BUSY:
        wait_ms = _text(trailing, WAIT_MS_KEY)
        wait_s = int(wait_ms[:9]) / 1e3 if wait_ms.isdecimal() else 1.0
        return BusyError(details, wait_s=min(wait_s, WAIT_MAX_S), ticket=_text(trailing, TICKET_KEY))
    if code:
        return MemgridError.of(code, details)
    if status in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    ):
        return UnavailableError(f"the coordinator does not answer: {details}")
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLargeError(details)
    return InternalError(f"{status.name.lower()}: {details}")


def _text(trailing: grpc.aio.Metadata | None, key: str) -> str:
    """One value of a call's trailing metadata; empty where it is not there."""
    value = "" if trailing is None else trailing.get(key, "")
    return value.decode() if isinstance(value, bytes) else str(value)


def _system_roots() -> bytes | None:
    """The machine's certificate authorities; None leaves it to those gRPC brings."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file).read_bytes() if file is not None and Path(file).is_file() else None


class _Authorised:
    """Adds the token to a call's metadata."""

    def __init__(self, token: Callable[[], str | None]) -> None:
        self._token = token

    def authorise(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        token = self._token()
        if token is None:
            return details
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add("authorization", f"Bearer {token}")
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


def _translated(error: grpc.aio.AioRpcError) -> MemgridError:
    return error_of(error.code(), error.details() or "", error.trailing_metadata())


class _UnaryCalls(_Authorised, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        call = await continuation(self.authorise(client_call_details), request)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None


class _StreamCalls(_Authorised, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> AsyncIterator[Any]:
        call = await continuation(self.authorise(client_call_details), request)
        return _messages(call)


async def _messages(call: Any) -> AsyncIterator[Any]:
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from None
    except asyncio.CancelledError:
        call.cancel()
        raise
