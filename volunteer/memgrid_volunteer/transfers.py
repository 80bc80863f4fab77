"""Bytes by digest over HTTP, down and up; a cut transfer goes on where it was cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx

from memgrid.channel import backoff_s
from memgrid.digest import Digest
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.errors import DigestMismatchError, InvalidError
from memgrid.units import BlobRef, UploadOrder
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.patience import Backoff, persist, raise_for
from memgrid_volunteer.uploads import Upload
from memgrid_volunteer.worth import Room

UPLOAD_ATTEMPTS_MAX = 3


class Fetches(Protocol):
    """Sees to it that a blob is in the cache; raises a MemgridError that says why it can't be had."""

    @property
    def room(self) -> Room:
        """What may be fetched that is not needed."""

    async def fetch(self, blob: BlobRef) -> Path:
        """Where it lies in the cache."""


class Transfers:
    """Downloads into a cache and uploads by order, with the session's token of the moment.

    Without a client it has to be `connected` first.
    """

    def __init__(
        self,
        client: httpx.AsyncClient | None,
        cache: BlobCache,
        token: Callable[[], str | None],
        rng: random.Random,
        *,
        budget: Budget,
        backoff: Backoff = backoff_s,
        tag: str = "",
    ) -> None:
        """`tag`: the grid's, in folders that it shares."""
        self._found = client
        self._budget = budget
        self._cache = cache
        self._token = token
        self._rng = rng
        self._backoff = backoff
        self._tag = tag
        self._locks: dict[Digest, asyncio.Lock] = {}

    @property
    def room(self) -> Room:
        """What its owner lets go over the network now."""
        return self._budget.room

    @contextlib.asynccontextmanager
    async def connected(self, endpoint: GridEndpoint) -> AsyncIterator[None]:
        """While inside, the grid that was found here is where bytes come from and go to."""
        async with async_http_client(endpoint) as self._found:
            yield

    @property
    def _client(self) -> httpx.AsyncClient:
        assert self._found is not None, "the grid is found before anything travels"
        return self._found

    async def fetch(self, blob: BlobRef) -> Path:
        """The blob's path in the cache, where it stays as long as it is pinned.

        Raises DigestMismatchError for other bytes than the address says, UnknownIdError when the grid does not
        have it, UnavailableError after too many failures, TooLargeError when the cache has no room.
        """
        async with self._locks.setdefault(blob.digest, asyncio.Lock()):
            if not await self._is_here(blob):
                await self._budget.open()
                await asyncio.to_thread(self._cache.make_room, blob.size_bytes)
                await persist(
                    lambda: self._fetch_rest(blob),
                    lambda: self._cache.partial_bytes(blob.digest, self._tag),
                    f"blob {blob.digest}",
                    self._rng,
                    self._backoff,
                )
                partial = self._cache.partial_path(blob.digest, self._tag)
                await asyncio.to_thread(self._cache.adopt, partial, blob.digest)
        return self._cache.path_of(blob.digest)

    async def upload(self, order: UploadOrder, file: Path) -> None:
        """Send an ordered output; raises what the grid refuses it with, UnavailableError after some failures.

        Few, for others wait behind it: whoever asks tries again later, and it goes on where it was cut.
        """
        await self._budget.open()
        upload = Upload(self._client, self._headers, order, file, self._budget)
        what = f"upload for lease {order.lease_id}"
        await persist(
            upload.send_rest,
            lambda: upload.sent_bytes,
            what,
            self._rng,
            self._backoff,
            attempts_max=UPLOAD_ATTEMPTS_MAX,
        )

    async def _is_here(self, blob: BlobRef) -> bool:
        if not self._cache.has(blob.digest, blob.size_bytes):
            return False
        return await asyncio.to_thread(self._cache.is_sound, blob.digest)

    async def _fetch_rest(self, blob: BlobRef) -> None:
        offset = self._cache.partial_bytes(blob.digest, self._tag)
        if offset > blob.size_bytes:
            offset = 0
        if offset == blob.size_bytes > 0:
            return
        headers = self._headers() | {"accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-"
        async with self._client.stream("GET", blob.path, headers=headers, follow_redirects=True) as response:
            await raise_for(response, f"blob {blob.digest}")
            # A server that ignores the range sends everything, from the beginning.
            offset = offset if response.status_code == 206 else 0
            _check_length(response, blob, offset)
            with _open_at(self._cache.partial_path(blob.digest, self._tag), offset) as file:
                await self._receive(response, blob, file, offset)

    async def _receive(self, response: httpx.Response, blob: BlobRef, file: BinaryIO, offset: int) -> None:
        async for block in response.aiter_raw():
            offset += len(block)
            if offset > blob.size_bytes:
                raise InvalidError(f"blob {blob.digest}: more than its {blob.size_bytes} bytes")
            file.write(block)
            await self._budget.received(len(block))
        if offset < blob.size_bytes:
            raise httpx.RemoteProtocolError(f"ended after {offset} of {blob.size_bytes} bytes")

    def _headers(self) -> dict[str, str]:
        token = self._token()
        return {} if token is None else {"authorization": f"Bearer {token}"}


def _check_length(response: httpx.Response, blob: BlobRef, offset: int) -> None:
    """Before the first byte: is this the part asked for, of a thing of the size expected?"""
    if response.status_code == 206:
        expected = f"bytes {offset}-{blob.size_bytes - 1}/{blob.size_bytes}"
        if response.headers.get("content-range") != expected:
            found = response.headers.get("content-range")
            raise DigestMismatchError(f"blob {blob.digest}: expected {expected!r}, the grid sends {found!r}")
    length = response.headers.get("content-length")
    if length is not None and length != str(blob.size_bytes - offset):
        raise DigestMismatchError(
            f"blob {blob.digest}: expected {blob.size_bytes - offset} bytes, the grid sends {length[:20]}"
        )


def _open_at(path: Path, offset: int) -> BinaryIO:
    file = path.open("r+b" if path.exists() else "w+b")
    file.seek(offset)
    file.truncate()
    return file
