"""Send content from disk: whole or in part, by the kernel where nothing has to be encrypted."""

from __future__ import annotations

import asyncio
from typing import BinaryIO

from aiohttp import web

from memgrid.errors import UnavailableError, UnknownIdError
from memgrid_coordinator.services.publishing import StoredBlob
from memgrid_coordinator.web.bodies import Pace
from memgrid_coordinator.web.requests import ByteRange, requested_range

_READ_BYTES = 512 << 10
"""One read, one encryption, one write to the socket: large enough that the loop's own cost disappears."""
_BY_THE_KERNEL_BYTES = 4 << 20
"""At once, where the kernel sends: few enough for a limit of time on each."""


async def send_blob(
    request: web.Request, blob: StoredBlob, headers: dict[str, str], pace: Pace
) -> web.StreamResponse:
    """Answer GET and HEAD for content that never changes: Range, ETag, and a cache lifetime without end."""
    etag = f'"{blob.digest}"'
    base = {
        **headers,
        "Docker-Content-Digest": blob.digest,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "max-age=31536000, immutable",
        "Content-Type": "application/octet-stream",
    }
    if etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers={key: base[key] for key in ("ETag", "Cache-Control")})
    part: ByteRange | None = None
    if request.method == "GET" and request.headers.get("If-Range", etag) == etag:
        part = requested_range(request.headers.get("Range"), blob.size_bytes)
    response = web.StreamResponse(status=206 if part else 200, headers=base)
    if part:
        last = part.start + part.count - 1
        response.headers["Content-Range"] = f"bytes {part.start}-{last}/{blob.size_bytes}"
    part = part or ByteRange(start=0, count=blob.size_bytes)
    response.content_length = part.count
    await response.prepare(request)
    if request.method == "GET" and part.count:
        await _send(request, response, blob, part, pace)
    await response.write_eof()
    return response


async def _send(
    request: web.Request, response: web.StreamResponse, blob: StoredBlob, part: ByteRange, pace: Pace
) -> None:
    """Send a part of some content, unless the other side takes any piece of it more slowly than anybody needs to."""
    try:
        if blob.pieces is not None:
            async for piece in blob.pieces(part.start, part.count):
                await _write(response, piece, pace)
            return
        with blob.path.open("rb") as file:
            await _copy(request, response, file, part, pace)
    except (OSError, EOFError, UnknownIdError, UnavailableError) as error:  # TimeoutError is an OSError
        # The answer has begun: a cut connection is the only way left to say that it is not whole.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the content was not sent whole") from error


async def _copy(
    request: web.Request, response: web.StreamResponse, file: BinaryIO, part: ByteRange, pace: Pace
) -> None:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the reader has gone")
    end = part.start + part.count
    if transport.get_extra_info("sslcontext") is None:
        for start in range(part.start, end, _BY_THE_KERNEL_BYTES):
            size_bytes = min(_BY_THE_KERNEL_BYTES, end - start)
            async with asyncio.timeout(_limit_s(size_bytes, pace)):
                await asyncio.get_running_loop().sendfile(transport, file, start, size_bytes)
        return
    file.seek(part.start)
    left = part.count
    while left:
        piece = await asyncio.to_thread(file.read, min(left, _READ_BYTES))
        if not piece:
            raise EOFError("the content ended early")
        await _write(response, piece, pace)
        left -= len(piece)


async def _write(response: web.StreamResponse, piece: bytes, pace: Pace) -> None:
    async with asyncio.timeout(_limit_s(len(piece), pace)):
        await response.write(piece)


def _limit_s(size_bytes: int, pace: Pace) -> float:
    return pace.silence_max_s + size_bytes / pace.bytes_per_s_min
