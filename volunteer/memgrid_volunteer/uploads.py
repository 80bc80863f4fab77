"""One ordered output on its way up: an OCI upload session that outlives cuts and restarts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from memgrid.errors import InvalidError, UnknownIdError
from memgrid.units import UploadOrder
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.patience import raise_for

CHUNK_BYTES = 8 << 20
_READ_BYTES = 1 << 16
_RECEIVED = re.compile(r"(?:bytes=)?0-(\d+)")


class Upload:
    """POST for a location, PATCH the chunks, PUT the digest; `send_rest` starts where the server stands.

    The location is kept in a file beside the output, so that a restarted process goes on with it.
    Source: OCI distribution specification 1.1, "Pushing a blob in chunks".
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        headers: Callable[[], dict[str, str]],
        order: UploadOrder,
        file: Path,
        budget: Budget,
    ) -> None:
        self._client = client
        self._headers = headers
        self._order = order
        self._budget = budget
        self._file = file
        self._memo = file.with_name(f"{file.name}.upload")
        self._what = f"upload of {order.name} for lease {order.lease_id}"
        self.sent_bytes = 0

    async def send_rest(self) -> None:
        """Bring the upload to its end; raises httpx.TransportError when it is cut again."""
        location = await self._resume() or await self._begin()
        while self.sent_bytes < self._order.size_bytes:
            location = await self._send_chunk(location)
        await self._finish(location)

    async def _resume(self) -> str | None:
        """Where an earlier attempt got to; None when there was none, or the server has forgotten it."""
        self.sent_bytes = 0
        location = await asyncio.to_thread(_read_text, self._memo)
        if location is None:
            return None
        response = await self._client.get(location, headers=self._headers())
        try:
            await raise_for(response, self._what)
        except (UnknownIdError, InvalidError):
            self._memo.unlink(missing_ok=True)
            return None
        received = _RECEIVED.fullmatch(response.headers.get("range", ""))
        # An empty upload has the range 0-0 as well as one of a single byte: sending that byte again is refused,
        # and then begun anew.
        last = int(received.group(1)) if received is not None else 0
        self.sent_bytes = min(last + 1, self._order.size_bytes) if last > 0 else 0
        return self._location(response, location)

    async def _begin(self) -> str:
        response = await self._client.post(self._order.path, headers=self._headers(), content=b"")
        await raise_for(response, self._what)
        return self._location(response, None)

    async def _send_chunk(self, location: str) -> str:
        begin = self.sent_bytes
        end = min(begin + CHUNK_BYTES, self._order.size_bytes)
        headers = self._headers() | {
            "content-type": "application/octet-stream",
            "content-length": str(end - begin),
            "content-range": f"{begin}-{end - 1}",
        }
        response = await self._client.patch(location, headers=headers, content=self._blocks(begin, end))
        if response.status_code == 416:
            self._memo.unlink(missing_ok=True)
            raise httpx.RemoteProtocolError("the server stands elsewhere in this upload; beginning anew")
        await raise_for(response, self._what)
        self.sent_bytes = end
        return self._location(response, location)

    async def _blocks(self, begin: int, end: int) -> AsyncIterator[bytes]:
        while begin < end:
            block = await asyncio.to_thread(_read_block, self._file, begin, min(_READ_BYTES, end - begin))
            if not block:
                raise InvalidError(f"{self._file}: shorter than it was")
            begin += len(block)
            await self._budget.sending(len(block))
            yield block

    async def _finish(self, location: str) -> None:
        url = httpx.URL(location).copy_merge_params({"digest": self._order.digest})
        response = await self._client.put(url, headers=self._headers(), content=b"")
        await raise_for(response, self._what)
        self._memo.unlink(missing_ok=True)

    def _location(self, response: httpx.Response, fallback: str | None) -> str:
        """The path to go on with. The host in it is ignored: the token is for the grid alone."""
        parts = urlsplit(response.headers.get("location") or fallback or "")
        if not parts.path.startswith("/"):
            raise InvalidError(f"{self._what}: the grid named no location")
        location = parts.path + (f"?{parts.query}" if parts.query else "")
        self._memo.write_text(location)
        return location


def _read_block(file: Path, begin: int, length: int) -> bytes:
    with file.open("rb") as source:
        source.seek(begin)
        return source.read(length)


def _read_text(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
