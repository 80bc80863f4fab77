"""The bounded folder of this machine before a bucket: what was used longest ago goes first, what is in use stays."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memgrid.digest import Digest
from memgrid_coordinator.store.blobs import BlobStore


class BucketFolder:
    """Files of blobs that are elsewhere too: losing all of them loses nothing.

    >>> import tempfile
    >>> folder = BucketFolder(Path(tempfile.mkdtemp()), 8)
    >>> first, second = folder.local.put_bytes(b"first"), folder.local.put_bytes(b"second")
    >>> folder.make_room(0); folder.local.has(first), folder.local.has(second)
    True
    (False, True)
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.local = BlobStore(folder)
        self.temporary = folder / "tmp"
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._pins: Counter[Digest] = Counter()

    @contextmanager
    def pinned(self, digests: Iterable[Digest]) -> Iterator[None]:
        """While inside, these stay."""
        held = list(digests)
        with self._lock:
            self._pins.update(held)
        try:
            yield
        finally:
            with self._lock:
                self._pins.subtract(held)
                self._pins = +self._pins

    def make_room(self, size_bytes: int) -> bool:
        """Drop the longest unused until so many more bytes fit; False when what is in use leaves no room.

        Whoever needs the content all the same goes on: the bound is exceeded rather than a computation refused.
        """
        with self._lock:
            files = self.local.kept_after(None, _ALL)
            used_bytes = sum(file.size_bytes for file in files)
            for file in sorted(files, key=lambda file: file.renewed_at):
                if used_bytes + size_bytes <= self._limit_bytes:
                    break
                if file.digest not in self._pins:
                    self.local.path_of(file.digest).unlink(missing_ok=True)
                    used_bytes -= file.size_bytes
            return used_bytes + size_bytes <= self._limit_bytes


_ALL = 1 << 62
