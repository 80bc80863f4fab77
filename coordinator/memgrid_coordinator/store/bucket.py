"""Content by address in an S3-compatible bucket, with a bounded folder of this machine for what is in use."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from memgrid.digest import Digest, digest_of, parse_digest
from memgrid.errors import DigestMismatchError, InvalidError, MemgridError, UnavailableError, UnknownIdError
from memgrid.log import get_logger
from memgrid_coordinator.policy.reachability import KeptBlob
from memgrid_coordinator.store.blobs import BlobStore, Pieces
from memgrid_coordinator.store.bucket_folder import BucketFolder
from memgrid_coordinator.store.bucket_place import BucketPlace

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_PIECE_BYTES = 8 << 20
"""Asked for at once: a lost connection costs no more than that."""
_SIZES_MAX = 200_000
_RENEW_AFTER = timedelta(hours=1)
"""How old content is before it is marked anew: well below any time of grace."""
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}

log = get_logger(__name__)


class BucketStore(BlobStore):
    """Objects `sha256/<64 hex>` under a prefix; `renewed/<64 hex>` marks what was about to be named again.

    The bucket is the truth, and several coordinators may share it. The folder holds what hosts and computations
    are reading; everything in it was checked against its digest on its way in.
    """

    def __init__(self, place: BucketPlace, folder: Path, *, cache_bytes: int) -> None:
        self._place = place
        self._folder = BucketFolder(folder, cache_bytes)
        self._sizes: OrderedDict[Digest, int] = OrderedDict()
        self._sizes_lock = threading.Lock()
        self._fetching: Counter[Digest] = Counter()
        self._locks: dict[Digest, threading.Lock] = {}
        limits: ClientConfig = {
            "timeout": "60s",
            "connect_timeout": "5s",
            "allow_http": (place.endpoint or "").startswith("http:"),
        }
        options: dict[str, Any] = {"endpoint": place.endpoint} if place.endpoint else {}
        self._objects = S3Store(
            place.bucket,
            prefix=place.prefix or None,
            region=place.region,
            virtual_hosted_style_request=place.virtual_hosted,
            client_options=limits,
            retry_config=_RETRIES,
            **options,
        )
        self._look()

    def _look(self) -> None:
        """Say at the start, not at the first campaign, that the bucket can't be used."""
        with self._translated():
            try:
                next(iter(self._objects.list("sha256", chunk_size=1)), None)
            except BaseError as error:
                if "NoSuchBucket" not in str(error):  # the client has no class of its own for it
                    raise
                raise InvalidError(f"--blobs: {self._place}: there is no such bucket") from None

    def path_of(self, digest: Digest) -> Path:
        return self._folder.local.path_of(digest)

    @asynccontextmanager
    async def at_hand(self, digests: Iterable[Digest]) -> AsyncIterator[dict[Digest, Path]]:
        wanted = list(dict.fromkeys(digests))
        with self._folder.pinned(wanted):
            yield await asyncio.to_thread(self._bring_all, wanted)

    def streams(self, digest: Digest) -> Pieces | None:
        if self._folder.local.renew(digest):
            return None

        async def pieces(offset: int, count: int) -> AsyncIterator[bytes]:
            end = offset + count
            while offset < end:
                piece = await asyncio.to_thread(self.read_piece, digest, offset, min(end - offset, _PIECE_BYTES))
                yield piece
                offset += len(piece)

        return pieces

    def has(self, digest: Digest) -> bool:
        return self._size(digest) is not None

    def renew(self, digest: Digest) -> bool:
        key = _key(digest)
        found = self._head(key)
        if found is None:
            self._forget(digest)
            return False
        if found["last_modified"] < datetime.now(UTC) - _RENEW_AFTER:
            with self._translated():
                self._objects.put(f"renewed/{key[7:]}", b"")
        self._remember(digest, found["size"])
        return True

    def size_of(self, digest: Digest) -> int:
        with self._sizes_lock:
            known = self._sizes.get(digest)
        size_bytes = self._size(digest) if known is None else known
        if size_bytes is None:
            raise _absent(digest)
        return size_bytes

    def read_bytes(self, digest: Digest) -> bytes:
        with suppress(UnknownIdError):
            return self._folder.local.read_bytes(digest)
        try:
            with self._translated():
                content = bytes(self._objects.get(_key(digest)).bytes())
        except UnknownIdError:
            raise _absent(digest) from None
        if digest_of(content) != digest:
            raise DigestMismatchError(f"blob {digest} is damaged in {self._place}")
        return content

    def put_bytes(self, content: bytes) -> Digest:
        digest = digest_of(content)
        if not self.renew(digest):
            with self._translated():
                self._objects.put(_key(digest), content)
            self._remember(digest, len(content))
        return digest

    def adopt(self, path: Path, digest: Digest) -> Path:
        """Move a finished file into the bucket; it stays in the folder, since it will be wanted soon."""
        size_bytes = path.stat().st_size
        if not self.renew(digest):
            with self._translated():
                self._objects.put(_key(digest), path)
            self._remember(digest, size_bytes)
        if not self._folder.make_room(size_bytes):
            path.unlink()
            return self.path_of(digest)
        return self._folder.local.adopt(path, digest)

    def link(self, digest: Digest, target: Path) -> None:
        with self._folder.pinned([digest]):
            self._bring(digest)
            self._folder.local.link(digest, target)

    def read_piece(self, digest: Digest, offset: int, count: int) -> bytes:
        if offset == 0:
            self._forget(digest)  # what is there now may be shorter than what was there once
        left = self.size_of(digest) - offset
        if min(left, count) <= 0:
            return b""
        try:
            with self._translated():
                return bytes(self._objects.get_range(_key(digest), start=offset, length=min(left, count)))
        except UnknownIdError:
            self._forget(digest)
            raise _absent(digest) from None

    def kept_after(self, after: Digest | None, limit: int) -> list[KeptBlob]:
        found: list[KeptBlob] = []
        with self._translated():
            offset = None if after is None else _key(after)
            for page in self._objects.list("sha256", offset=offset, chunk_size=min(limit, 1000)):
                found += [blob for one in page if (blob := _kept(one)) is not None]
                if len(found) >= limit:
                    break
        return found

    def remove(self, digest: Digest, *, unless_renewed_since: datetime) -> int | None:
        key, mark = _key(digest), f"renewed/{_key(digest)[7:]}"
        found, marked = self._head(key), self._head(mark)
        if found is None or any(one["last_modified"] >= unless_renewed_since for one in (found, marked) if one):
            return None
        self._forget(digest)
        with self._translated():
            self._objects.delete(key)
            if marked is not None:
                self._objects.delete(mark)
        self._folder.local.path_of(digest).unlink(missing_ok=True)
        return int(found["size"])

    def set_aside(self, digest: Digest) -> None:
        self._forget(digest)
        with suppress(UnknownIdError), self._translated():
            self._objects.rename(_key(digest), f"damaged/{_key(digest)[7:]}", overwrite=True)
        self._folder.local.path_of(digest).unlink(missing_ok=True)

    def set_aside_count(self) -> int:
        with self._translated():
            return sum(len(page) for page in self._objects.list("damaged"))

    def free_bytes(self) -> int:
        """Room left on the disk that uploads and the folder of this machine share."""
        return self._folder.local.free_bytes()

    def clear_temporary(self) -> int:
        return self._folder.local.clear_temporary()

    def _bring_all(self, digests: list[Digest]) -> dict[Digest, Path]:
        paths: dict[Digest, Path] = {}
        for digest in digests:
            with suppress(UnknownIdError):
                paths[digest] = self._bring(digest)
        return paths

    def _bring(self, digest: Digest) -> Path:
        """The content as a file of this machine; raises UnknownIdError, DigestMismatchError, UnavailableError."""
        with self._alone_with(digest):
            if self._folder.local.renew(digest):
                return self.path_of(digest)
            size_bytes = self.size_of(digest)
            self._folder.make_room(size_bytes)
            state = hashlib.sha256()
            with NamedTemporaryFile(dir=self._folder.temporary, delete=False) as file:
                path = Path(file.name)
                try:
                    for offset in range(0, size_bytes, _PIECE_BYTES):
                        piece = self.read_piece(digest, offset, _PIECE_BYTES)
                        state.update(piece)
                        file.write(piece)
                    file.flush()
                    if state.hexdigest() != digest.removeprefix("sha256:"):
                        raise DigestMismatchError(f"blob {digest} is damaged in {self._place}")
                    return self._folder.local.adopt(path, digest)
                finally:
                    path.unlink(missing_ok=True)

    @contextmanager
    def _alone_with(self, digest: Digest) -> Iterator[None]:
        """Two that want the same content fetch it once."""
        with self._sizes_lock:
            self._fetching[digest] += 1
            lock = self._locks.setdefault(digest, threading.Lock())
        try:
            with lock:
                yield
        finally:
            with self._sizes_lock:
                self._fetching[digest] -= 1
                if not self._fetching[digest]:
                    del self._fetching[digest], self._locks[digest]

    def _size(self, digest: Digest) -> int | None:
        found = self._head(_key(digest))
        if found is None:
            self._forget(digest)
            return None
        self._remember(digest, found["size"])
        return int(found["size"])

    def _head(self, key: str) -> Any:
        try:
            with self._translated():
                return self._objects.head(key)
        except UnknownIdError:
            return None

    def _remember(self, digest: Digest, size_bytes: int) -> None:
        with self._sizes_lock:
            self._sizes[digest] = size_bytes
            if len(self._sizes) > _SIZES_MAX:
                self._sizes.popitem(last=False)

    def _forget(self, digest: Digest) -> None:
        with self._sizes_lock:
            self._sizes.pop(digest, None)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What the client raises, as what callers know; its own words go to the log, not to strangers."""
        try:
            yield
        except FileNotFoundError:
            raise UnknownIdError(f"not in {self._place}") from None
        except MemgridError:
            raise
        except (PermissionDeniedError, UnauthenticatedError):
            raise UnavailableError(
                f"{self._place} refuses our keys; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the coordinator"
            ) from None
        except BaseError as error:
            log.warning("bucket failed", place=str(self._place), error=str(error).partition("\n")[0][:300])
            raise UnavailableError(f"{self._place} does not answer; try again later") from None


def _key(digest: Digest) -> str:
    return f"sha256/{parse_digest(digest).removeprefix('sha256:')}"


def _kept(found: Any) -> KeptBlob | None:
    try:
        digest = parse_digest("sha256:" + found["path"].rpartition("/")[2])
    except InvalidError:
        return None
    return KeptBlob(digest=digest, size_bytes=found["size"], renewed_at=found["last_modified"])


def _absent(digest: Digest) -> UnknownIdError:
    return UnknownIdError(f"blob {digest} is not in this grid's store")
