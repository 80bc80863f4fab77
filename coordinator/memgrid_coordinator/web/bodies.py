"""Read request bodies from strangers: no slower than a limit, and no byte before it was admitted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from memgrid.clock import Clock
from memgrid_coordinator.web.requests import OciError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How slow the other side may be before we stop waiting for it."""

    silence_max_s: float = 30.0
    """Between two pieces of a body."""
    window_s: float = 20.0
    """Over which the rate is taken."""
    bytes_per_s_min: int = 4096


DEFAULT_PACE = Pace()


async def no_continue(request: web.Request) -> None:
    """Instead of aiohttp's "100 Continue", which it would send before anybody was asked."""


async def read_body(request: web.Request, pace: Pace, clock: Clock) -> AsyncIterator[bytes]:
    """The body in pieces as they come; raises OciError 408 when they come too slowly.

    Only the time spent waiting for the other side counts, not the time we take to write.
    """
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    waited_s, came_bytes = 0.0, 0
    while True:
        started_s = clock.monotonic_s()
        try:
            async with asyncio.timeout(pace.silence_max_s):
                piece = await request.content.readany()
        except TimeoutError:
            raise OciError(408, "BLOB_UPLOAD_INVALID", f"nothing came for {pace.silence_max_s:g} s") from None
        if not piece:
            return
        yield piece
        waited_s += clock.monotonic_s() - started_s
        came_bytes += len(piece)
        if waited_s >= pace.window_s:
            if came_bytes < pace.bytes_per_s_min * waited_s:
                raise OciError(408, "BLOB_UPLOAD_INVALID", f"slower than {pace.bytes_per_s_min} bytes a second")
            waited_s, came_bytes = 0.0, 0


async def read_whole(request: web.Request, limit_bytes: int, pace: Pace, clock: Clock) -> bytes:
    """A small body, all of it; raises OciError 413 before it is longer than `limit_bytes`."""
    too_large = OciError(413, "SIZE_INVALID", f"at most {limit_bytes} bytes are allowed")
    if (request.content_length or 0) > limit_bytes:
        raise too_large
    content = bytearray()
    async for piece in read_body(request, pace, clock):
        content += piece
        if len(content) > limit_bytes:
            raise too_large
    return bytes(content)
