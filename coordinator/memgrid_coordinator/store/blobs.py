"""Content by address in one folder: written once, under its own digest, never changed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from memgrid.digest import Digest, digest_of, parse_digest
from memgrid.errors import InvalidError, UnknownIdError
from memgrid_coordinator.policy.reachability import KeptBlob
from memgrid_coordinator.store.disk import refusals_in_words

Pieces = Callable[[int, int], AsyncIterator[bytes]]
"""So many bytes of some content, from an offset on."""
_PUT_AT_ONCE = 16


class BlobStore:
    """A folder of immutable files, `sha256/ab/<64 hex>`; `store/bucket.py` keeps the same in a bucket.

    What `has` says is there survives a power cut: bytes are synced before they get their name, the folder after.
    Two writers of the same content are no conflict, since both put the same bytes in place. Every method but
    `path_of` may take as long as the disk, or the network, does.

    >>> import tempfile
    >>> blobs = BlobStore(Path(tempfile.mkdtemp()))
    >>> digest = blobs.put_bytes(b"hello"); blobs.size_of(digest)
    5
    """

    def __init__(self, folder: Path) -> None:
        self._content = folder / "sha256"
        self._temporary = folder / "tmp"
        self._damaged = folder / "damaged"
        self._content.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(exist_ok=True)

    def path_of(self, digest: Digest) -> Path:
        """Where the content is on this machine, or would be; raises InvalidError on anything that is no digest."""
        hexadecimal = parse_digest(digest).removeprefix("sha256:")
        return self._content / hexadecimal[:2] / hexadecimal

    @asynccontextmanager
    async def at_hand(self, digests: Iterable[Digest]) -> AsyncIterator[dict[Digest, Path]]:
        """Files of this machine with these contents, for as long as the block runs; what is gone is left out."""
        wanted = list(dict.fromkeys(digests))
        paths = {digest: self.path_of(digest) for digest in wanted}
        yield {digest: path for digest, path in paths.items() if path.is_file()}

    def streams(self, digest: Digest) -> Pieces | None:
        """How to read content that lies in no file of this machine; None where `path_of` does."""
        return None

    def has(self, digest: Digest) -> bool:
        return self.path_of(digest).is_file()

    def renew(self, digest: Digest) -> bool:
        """Whether the content is here; if so its age begins anew, so that what is about to name it comes in time."""
        try:
            os.utime(self.path_of(digest))
        except FileNotFoundError:
            return False
        return True

    def size_of(self, digest: Digest) -> int:
        """Bytes of the content; raises UnknownIdError when it is not here."""
        try:
            return self.path_of(digest).stat().st_size
        except FileNotFoundError:
            raise UnknownIdError(f"blob {digest} is not in this grid's store") from None

    def read_bytes(self, digest: Digest) -> bytes:
        """All of a small blob; raises UnknownIdError when it is not here."""
        try:
            return self.path_of(digest).read_bytes()
        except FileNotFoundError:
            raise UnknownIdError(f"blob {digest} is not in this grid's store") from None

    @refusals_in_words()
    def put_bytes(self, content: bytes) -> Digest:
        """Keep some bytes; returns their address once they are on disk. Raises UnavailableError when it is full."""
        digest = digest_of(content)
        if not self.renew(digest):
            handle, name = tempfile.mkstemp(dir=self._temporary)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                self.adopt(Path(name), digest)
            finally:
                Path(name).unlink(missing_ok=True)  # a full disk has no room for halves
        return digest

    def put_all(self, contents: Iterable[bytes]) -> None:
        """Keep many; returns once all are on disk. Many wait for it at a time, since a disk writes them together."""
        left = iter(contents)
        with ThreadPoolExecutor(_PUT_AT_ONCE) as pool:
            while some := list(islice(left, 64 * _PUT_AT_ONCE)):
                for _ in pool.map(self.put_bytes, some):
                    pass

    @refusals_in_words()
    def adopt(self, path: Path, digest: Digest) -> Path:
        """Move a finished file into place; `path` is gone afterwards. The caller has checked the digest."""
        target = self.path_of(digest)
        if self.renew(digest):
            path.unlink(missing_ok=True)  # two that finish the same upload at once both come here
            return target
        _sync(path)
        # Shared by hard link with other folders: nobody may write through one of its names.
        path.chmod(0o444)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            _sync(self._content)
        try:
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return self._adopt_from_another_disk(path, digest)
        _sync(target.parent)
        return target

    def _adopt_from_another_disk(self, path: Path, digest: Digest) -> Path:
        handle, name = tempfile.mkstemp(dir=self._temporary)
        os.close(handle)
        try:
            shutil.copyfile(path, name)
            path.unlink()
            return self.adopt(Path(name), digest)
        finally:
            Path(name).unlink(missing_ok=True)

    def link(self, digest: Digest, target: Path) -> None:
        """Show the content under another name, without a copy where the file system can; raises UnknownIdError."""
        source = self.path_of(digest)
        try:
            target.hardlink_to(source)
        except FileNotFoundError:
            raise UnknownIdError(f"blob {digest} is not in this grid's store") from None
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(source, target)

    def read_piece(self, digest: Digest, offset: int, count: int) -> bytes:
        """At most so many bytes from an offset on, as they are kept; raises UnknownIdError, OSError."""
        try:
            with self.path_of(digest).open("rb") as file:
                file.seek(offset)
                return file.read(count)
        except FileNotFoundError:
            raise UnknownIdError(f"blob {digest} is not in this grid's store") from None

    def kept_after(self, after: Digest | None, limit: int) -> list[KeptBlob]:
        """What is here in the order of digests, after one of them; at least `limit` unless the store ends."""
        last = "" if after is None else after.removeprefix("sha256:")
        found: list[KeptBlob] = []
        for folder in sorted(self._content.iterdir()):
            if folder.name < last[:2]:
                continue
            paths = sorted(path for path in folder.iterdir() if path.name > last)
            found += [blob for path in paths if (blob := _kept(path)) is not None]
            if len(found) >= limit:
                break
        return found

    def remove(self, digest: Digest, *, unless_renewed_since: datetime) -> int | None:
        """Let content go, unless somebody touched it since; returns the bytes that this freed, None when it stays."""
        path = self.path_of(digest)
        blob = _kept(path)
        if blob is None or blob.renewed_at >= unless_renewed_since:
            return None
        path.unlink(missing_ok=True)
        return blob.size_bytes

    def set_aside(self, digest: Digest) -> None:
        """Take damaged content out of everybody's reach; its bytes stay in `damaged/` for whoever wants to look."""
        self._damaged.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            self.path_of(digest).replace(self._damaged / digest.removeprefix("sha256:"))
            _sync(self._damaged)

    def set_aside_count(self) -> int:
        """How many damaged blobs lie there."""
        return sum(1 for _ in self._damaged.iterdir()) if self._damaged.is_dir() else 0

    def free_bytes(self) -> int:
        """Room left on the disk the content is on."""
        return shutil.disk_usage(self._content).free

    def clear_temporary(self) -> int:
        """Remove what a killed process left half-written; call it before anything writes. Returns how many."""
        leftovers = list(self._temporary.iterdir())
        for path in leftovers:
            path.unlink()
        return len(leftovers)


def _kept(path: Path) -> KeptBlob | None:
    """None for what has just gone, and for what is no blob."""
    try:
        found = path.stat()
        digest = parse_digest(f"sha256:{path.name}")
    except (FileNotFoundError, InvalidError):
        return None
    renewed_at = datetime.fromtimestamp(found.st_mtime, UTC)
    return KeptBlob(digest=digest, size_bytes=found.st_size, renewed_at=renewed_at)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
