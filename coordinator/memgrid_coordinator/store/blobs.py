"""Content by address in one folder: written once, under its own digest, never changed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from memgrid.digest import Digest, digest_of, parse_digest
from memgrid.errors import UnknownIdError


class BlobStore:
    """A folder of immutable files, `sha256/ab/<64 hex>`.

    What `has` says is there survives a power cut: bytes are synced before they get their name, the folder after.
    Two writers of the same content are no conflict, since both put the same bytes in place.

    >>> import tempfile
    >>> blobs = BlobStore(Path(tempfile.mkdtemp()))
    >>> digest = blobs.put_bytes(b"hello"); blobs.size_of(digest)
    5
    """

    def __init__(self, folder: Path) -> None:
        self._content = folder / "sha256"
        self._temporary = folder / "tmp"
        self._content.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(exist_ok=True)

    def path_of(self, digest: Digest) -> Path:
        """Where the content is, or would be; raises InvalidError on anything that is no digest."""
        hexadecimal = parse_digest(digest).removeprefix("sha256:")
        return self._content / hexadecimal[:2] / hexadecimal

    def has(self, digest: Digest) -> bool:
        return self.path_of(digest).is_file()

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

    def put_bytes(self, content: bytes) -> Digest:
        """Keep some bytes; returns their address once they are on disk."""
        digest = digest_of(content)
        if not self.has(digest):
            handle, name = tempfile.mkstemp(dir=self._temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            self.adopt(Path(name), digest)
        return digest

    def adopt(self, path: Path, digest: Digest) -> Path:
        """Move a finished file into place; `path` is gone afterwards. The caller has checked the digest."""
        target = self.path_of(digest)
        if target.is_file():
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
        shutil.copyfile(path, name)
        path.unlink()
        return self.adopt(Path(name), digest)

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

    def free_bytes(self) -> int:
        """Room left on the disk the content is on."""
        return shutil.disk_usage(self._content).free

    def clear_temporary(self) -> int:
        """Remove what a killed process left half-written; call it before anything writes. Returns how many."""
        leftovers = list(self._temporary.iterdir())
        for path in leftovers:
            path.unlink()
        return len(leftovers)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
