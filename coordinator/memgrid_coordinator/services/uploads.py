"""Take blobs in: admitted before the first byte, resumable, and checked before they count."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.errors import InvalidError, UnavailableError, UnknownIdError
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.policy.repositories import RepositoryKind, check_push, kind_of
from memgrid_coordinator.records import Caller
from memgrid_coordinator.services.admission import Admission, UploadJudge
from memgrid_coordinator.services.publishing import StoredBlob, stored_blob
from memgrid_coordinator.store import pool
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.disk import refusals_in_words
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.partials import PartialFile, PartialStore, Upload

_WRITE_BYTES = 1 << 20
"""How much of an upload is held in memory before it is written."""
_FINISHED_MAX = 1024


class OutOfOrderError(InvalidError):
    """Bytes that don't follow what is there; `progress` says where to go on."""

    def __init__(self, message: str, progress: UploadProgress) -> None:
        super().__init__(message)
        self.progress = progress


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadProgress:
    """How far an upload is."""

    upload_id: str
    repository: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What keeps uploads from filling the disk."""

    blob_bytes_max: int = 64 << 30
    reserve_bytes: int = 256 << 20
    """Never filled by an upload: the database needs room to say no."""
    open_per_owner_max: int = 64
    stale_after: timedelta = timedelta(days=1)


@dataclass(slots=True)
class _Open:
    upload: Upload
    file: PartialFile


class Uploads:
    """Every upload under way. What is needed to go on after a restart is on disk."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        judging: UploadJudge,
        travelling: UploadJudge,
        checkpoints: BlobStore,
        clock: Clock,
        folder: Path,
        new_id: Callable[[], str],
        limits: UploadLimits,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._partials = PartialStore(folder)
        self._checkpoints = checkpoints
        self._admissions = {
            RepositoryKind.OUTPUTS: Admission(judging),
            RepositoryKind.CHECKPOINTS: Admission(travelling),
        }
        self._clock = clock
        self._new_id = new_id  # 32 hex digits
        self._limits = limits
        self._open = {
            upload.upload_id: _Open(upload, self._partials.open(upload.upload_id)) for upload in self._partials.load()
        }
        self._finished: OrderedDict[str, tuple[Upload, StoredBlob]] = OrderedDict()

    async def begin(
        self, caller: Caller, repository: str, digest: Digest | None = None
    ) -> UploadProgress | StoredBlob:
        """Admit an upload, or say that its content is here already.

        Raises NotAllowedError, TokenRequiredError, RefusedUpload, UnavailableError (no room).
        """
        check_push(caller, repository)
        limit_bytes = self._limits.blob_bytes_max
        if admission := self._admissions.get(kind_of(repository)):
            orders = await admission.orders(caller, repository, digest)
            limit_bytes = max(order.size_bytes for order in orders)
            digest = orders[0].digest if len(orders) == 1 else digest
        # Who knows the digest of another account's checkpoint has not got it yet: they have to send the bytes.
        may_be_here = kind_of(repository) is not RepositoryKind.CHECKPOINTS
        if digest is not None and may_be_here and await asyncio.to_thread(self._blobs.renew, digest):
            return await self._register(caller, repository, digest)
        self._check_room(repository, 0)
        owner = _owner(caller)
        await self._make_place(owner, repository)
        upload = Upload(
            upload_id=self._new_id(),
            owner=owner,
            repository=repository,
            limit_bytes=limit_bytes,
            expected=digest,
            started_at=self._clock.now(),
        )
        await asyncio.to_thread(self._partials.begin, upload)
        self._open[upload.upload_id] = _Open(upload, self._partials.open(upload.upload_id))
        return UploadProgress(upload_id=upload.upload_id, repository=repository, size_bytes=0)

    async def progress(self, caller: Caller, repository: str, upload_id: str) -> UploadProgress:
        """Raises UnknownIdError for an upload that has ended, or isn't the caller's."""
        return _progress(self._find(caller, repository, upload_id))

    async def admit(
        self, caller: Caller, repository: str, upload_id: str, offset: int | None, length: int | None
    ) -> None:
        """Called before a byte is read; raises RefusedUpload, TooLargeError, OutOfOrderError, UnavailableError."""
        found = self._find(caller, repository, upload_id)
        size_bytes = found.file.size_bytes
        if offset is not None and offset != size_bytes:
            raise OutOfOrderError(f"upload {upload_id} has {size_bytes} bytes; go on there", _progress(found))
        if size_bytes + (length or 0) > found.upload.limit_bytes:
            await self._too_large(caller, found)
        self._check_room(repository, length or 0)

    async def append(
        self, caller: Caller, repository: str, upload_id: str, chunks: AsyncIterator[bytes]
    ) -> UploadProgress:
        """Add what comes, in bounded memory. What came before an error is kept, and can be continued from."""
        found = self._find(caller, repository, upload_id)
        offset = found.file.size_bytes
        waiting: list[bytes] = []
        waiting_bytes = 0
        try:
            async for chunk in chunks:
                waiting.append(chunk)
                waiting_bytes += len(chunk)
                if offset + waiting_bytes > found.upload.limit_bytes:
                    waiting.clear()
                    await self._too_large(caller, found)
                if waiting_bytes >= _WRITE_BYTES:
                    offset = await self._write(found, waiting, offset)
                    waiting_bytes = 0
        finally:
            if waiting:
                await self._write(found, waiting, offset)
        return _progress(found)

    async def finish(self, caller: Caller, repository: str, upload_id: str, digest: Digest) -> StoredBlob:
        """Check the whole and keep it under its digest; finishing twice gives the same answer.

        Raises DigestMismatchError or RefusedUpload, and the upload is gone; UnknownIdError.
        """
        if (done := self._finished.get(upload_id)) and done[0].owner == _owner(caller) and done[1].digest == digest:
            return done[1]
        found = self._find(caller, repository, upload_id)
        if admission := self._admissions.get(kind_of(repository)):
            order = (await admission.orders(caller, repository, digest))[0]
            if found.file.size_bytes < order.size_bytes:
                text = f"{order.name} has {order.size_bytes} bytes, {found.file.size_bytes} came"
                await self._refuse(caller, found, Reason(code=ReasonCode.UPLOAD_TRUNCATED, text=text))
        actual = await asyncio.to_thread(found.file.seal)
        if actual != digest:
            text = f"expected {digest}, but the bytes that came are {actual}"
            await self._refuse(caller, found, Reason(code=ReasonCode.DIGEST_MISMATCH, text=text))
        await asyncio.to_thread(self._store_of(repository).adopt, found.file.path, digest)
        blob = await self._register(caller, repository, digest)
        self._finished[upload_id] = (found.upload, blob)
        if len(self._finished) > _FINISHED_MAX:
            self._finished.popitem(last=False)
        await self._forget(found)
        return blob

    async def cancel(self, caller: Caller, repository: str, upload_id: str) -> None:
        """Forget an upload and its bytes; raises UnknownIdError."""
        await self._forget(self._find(caller, repository, upload_id))

    async def remove_stale(self) -> int:
        """Forget uploads that were begun too long ago; returns how many."""
        oldest = self._clock.now() - self._limits.stale_after
        stale = [found for found in self._open.values() if found.upload.started_at < oldest]
        for found in stale:
            await self._forget(found)
        return len(stale)

    async def _register(self, caller: Caller, repository: str, digest: Digest) -> StoredBlob:
        """Let what is in the content store count where it was sent to."""
        if admission := self._admissions.get(kind_of(repository)):
            await admission.receive(caller, repository, digest)
        else:
            await self._store.write(partial(pool.link_blobs, repository=repository, digests=[digest]))
        return await asyncio.to_thread(stored_blob, self._store_of(repository), digest)

    def _store_of(self, repository: str) -> BlobStore:
        return self._checkpoints if kind_of(repository) is RepositoryKind.CHECKPOINTS else self._blobs

    async def _write(self, found: _Open, waiting: list[bytes], offset: int) -> int:
        content = b"".join(waiting)
        waiting.clear()
        with refusals_in_words():
            written = await asyncio.to_thread(found.file.append, content, offset)
        if not written:
            raise OutOfOrderError(f"another request goes on with upload {found.upload.upload_id}", _progress(found))
        return offset + len(content)

    async def _too_large(self, caller: Caller, found: _Open) -> NoReturn:
        text = f"an upload to {found.upload.repository} may have {found.upload.limit_bytes} bytes at most"
        await self._refuse(caller, found, Reason(code=ReasonCode.UPLOAD_TOO_LARGE, text=text))

    async def _refuse(self, caller: Caller, found: _Open, reason: Reason) -> NoReturn:
        await self._forget(found)
        # Nothing but what was ordered is of a digest or a length that was known beforehand.
        admission = self._admissions.get(kind_of(found.upload.repository), self._admissions[RepositoryKind.OUTPUTS])
        await admission.refuse(caller, found.upload.repository, reason)

    async def _make_place(self, owner: str, repository: str) -> None:
        """An output that is begun anew replaces what was begun before; nobody keeps many uploads open."""
        mine = [found for found in self._open.values() if found.upload.owner == owner]
        if kind_of(repository) in self._admissions:
            for found in mine:
                if found.upload.repository == repository:
                    await self._forget(found)
        if len(mine) >= self._limits.open_per_owner_max:
            raise UnavailableError(f"{len(mine)} uploads are open; finish or cancel some")

    def _check_room(self, repository: str, length: int) -> None:
        if self._store_of(repository).free_bytes() - length < self._limits.reserve_bytes:
            raise UnavailableError("the grid's disk is full; try again later")

    def _find(self, caller: Caller, repository: str, upload_id: str) -> _Open:
        check_push(caller, repository)
        found = self._open.get(upload_id)
        if found is None or found.upload.owner != _owner(caller) or found.upload.repository != repository:
            raise UnknownIdError(f"upload {upload_id[:40]!r} is not known; begin again")
        return found

    async def _forget(self, found: _Open) -> None:
        self._open.pop(found.upload.upload_id, None)
        await asyncio.to_thread(self._partials.remove, found.upload.upload_id)


def _owner(caller: Caller) -> str:
    return caller.host_id if caller.host_id is not None else caller.role.value


def _progress(found: _Open) -> UploadProgress:
    return UploadProgress(
        upload_id=found.upload.upload_id,
        repository=found.upload.repository,
        size_bytes=found.file.size_bytes,
    )
