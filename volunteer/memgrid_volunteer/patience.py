"""Trying again over HTTP: what a status means, which failures pass by themselves, and when to give up."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

import httpx

from memgrid.channel import backoff_s
from memgrid.errors import (
    InvalidError,
    MemgridError,
    NotAllowedError,
    TokenExpiredError,
    TooLargeError,
    UnavailableError,
    UnknownIdError,
)
from memgrid.log import get_logger

ATTEMPTS_MAX = 8
"""Failures in a row, without a byte of progress, after which a transfer is given up for now."""
_ERROR_BYTES_MAX = 16 * 1024
_PASSING = (httpx.TransportError, UnavailableError, TokenExpiredError)
_ERROR_BY_STATUS: dict[int, type[MemgridError]] = {
    401: TokenExpiredError,
    403: NotAllowedError,
    404: UnknownIdError,
    413: TooLargeError,
    429: UnavailableError,
}

log = get_logger(__name__)

Backoff = Callable[[int, random.Random], float]


async def persist(
    attempt: Callable[[], Awaitable[None]],
    progress: Callable[[], int],
    what: str,
    rng: random.Random,
    backoff: Backoff = backoff_s,
    *,
    attempts_max: int = ATTEMPTS_MAX,
) -> None:
    """Repeat `attempt` while its failures are of the passing kind; each byte of progress renews the patience.

    Raises UnavailableError after `attempts_max` fruitless failures in a row, any other error at once.
    """
    failures, reached = 0, progress()
    while True:
        try:
            return await attempt()
        except _PASSING as error:
            now = progress()
            failures = 1 if now > reached else failures + 1
            reached = max(now, reached)
            if failures >= attempts_max:
                raise UnavailableError(f"{what}: given up after {failures} attempts: {error!r}") from None
            pause_s = backoff(failures, rng)
            log.info(
                "transfer cut", what=what, reached_bytes=reached, error=repr(error), again_in_s=round(pause_s, 1)
            )
            await asyncio.sleep(pause_s)


async def raise_for(response: httpx.Response, what: str) -> None:
    """Raises the error an HTTP status stands for, with the server's own words; returns when there is none."""
    status = response.status_code
    if status < 400:
        return
    content = await _first_bytes(response)
    kind = _ERROR_BY_STATUS.get(status, UnavailableError if status >= 500 else InvalidError)
    raise kind(f"{what}: {_message_of(content) or f'HTTP status {status}'}")


async def _first_bytes(response: httpx.Response) -> bytes:
    if response.is_stream_consumed:
        return response.content
    content = b""
    async for block in response.aiter_raw():
        content += block
        if len(content) >= _ERROR_BYTES_MAX:
            break
    return content


def _message_of(content: bytes) -> str:
    """The first message of an OCI error body, or nothing."""
    try:
        return str(json.loads(content)["errors"][0]["message"])[:500]
    except (ValueError, LookupError, TypeError):
        return ""
