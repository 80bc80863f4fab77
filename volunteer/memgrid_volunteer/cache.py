"""Blobs by digest in a bounded folder; what was used longest ago goes first, what is in use stays."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from memgrid.cube.identity import is_model_file
from memgrid.digest import Digest, digest_of_file
from memgrid.errors import DigestMismatchError, InvalidError, TooLargeError
from memgrid.units import ModelFiles

DISK_RESERVE_BYTES = 16 << 20
"""Never filled with inputs: results and the diary need room."""


class BlobCache:
    """`blobs/<hex>` whole and checked, `partial/<hex>` on their way, `models/<hex>/` folders of links to blobs.

    One process uses a cache at a time. Methods that hash or delete take as long as the disk does.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._pins: Counter[Digest] = Counter()
        for name in ("blobs", "partial", "models"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def path_of(self, digest: Digest) -> Path:
        return self.folder / "blobs" / _hex(digest)

    def partial_path(self, digest: Digest) -> Path:
        """Where the bytes fetched so far lie, also after a restart."""
        return self.folder / "partial" / _hex(digest)

    def partial_bytes(self, digest: Digest) -> int:
        path = self.partial_path(digest)
        return path.stat().st_size if path.exists() else 0

    def has(self, digest: Digest, size_bytes: int) -> bool:
        """Whether it is here; counts as a use of it."""
        path = self.path_of(digest)
        try:
            # After a power cut a file may be there without its bytes.
            if path.stat().st_size != size_bytes:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def pinned(self, digests: Iterable[Digest]) -> Iterator[None]:
        """While inside, these blobs are not evicted."""
        held = list(digests)
        self._pins.update(held)
        try:
            yield
        finally:
            self._pins.subtract(held)
            self._pins = +self._pins

    def make_room(self, size_bytes: int) -> None:
        """Evict until so many more bytes fit the limit and the disk; raises TooLargeError when they can not."""
        files = [(path, path.stat()) for path in (self.folder / "blobs").iterdir()]
        used_bytes = sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda entry: entry[1].st_mtime_ns):
            if used_bytes + size_bytes <= self.limit_bytes and self._fits_on_disk(size_bytes):
                break
            if Digest(f"sha256:{path.name}") not in self._pins:
                self._evict(path)
                used_bytes -= stat.st_size
        if not self._fits_on_disk(size_bytes):
            raise TooLargeError(f"cache: the disk of {self.folder} has no room for {size_bytes} more bytes")
        if used_bytes + size_bytes > self.limit_bytes:
            raise TooLargeError(
                f"cache: {size_bytes} more bytes do not fit into its {self.limit_bytes}; raise --cache-gb"
            )

    def _fits_on_disk(self, size_bytes: int) -> bool:
        # Others use the disk too: a limit says nothing of the room that is left.
        return shutil.disk_usage(self.folder).free >= size_bytes + DISK_RESERVE_BYTES

    def adopt(self, source: Path, digest: Digest) -> Path:
        """Move a complete file in; raises DigestMismatchError, and deletes it, when it is something else."""
        found = digest_of_file(source)
        if found != digest:
            source.unlink()
            raise DigestMismatchError(f"blob {digest}: what came has digest {found}")
        return source.replace(self.path_of(digest))

    def keep(self, source: Path, digest: Digest) -> None:
        """Take a second name of a file that is known to be right, where there is room for it."""
        try:
            self.make_room(source.stat().st_size)
        except TooLargeError:
            return
        if not self.path_of(digest).exists():
            link(source, self.path_of(digest))

    def model_folder(self, model: ModelFiles) -> Path:
        """A folder with the model's files under their names; all its blobs must be here."""
        folder = self.folder / "models" / _hex(model.digest)
        if folder.is_dir():
            return folder
        making = folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        for file in model.files:
            if not is_model_file(file.name):
                raise InvalidError(f"model {model.digest}: a file may not be named {file.name[:80]!r}")
            link(self.path_of(file.digest), making / file.name)
        making.rename(folder)
        return folder

    def _evict(self, blob: Path) -> None:
        # A model folder holds its blobs by hard links: they take room until the last name is gone.
        if blob.stat().st_nlink > 1:
            for folder in (self.folder / "models").iterdir():
                if any(file.samefile(blob) for file in folder.iterdir()):
                    shutil.rmtree(folder)
        blob.unlink()


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system knows no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _hex(digest: Digest) -> str:
    return digest.removeprefix("sha256:")
