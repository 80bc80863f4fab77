"""Blobs by digest in a bounded folder; what was used longest ago goes first, what is in use stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from memgrid.cube.identity import is_model_file
from memgrid.digest import Digest, canonical_json, digest_of, digest_of_file
from memgrid.errors import DigestMismatchError, InvalidError, TooLargeError
from memgrid.log import get_logger
from memgrid.units import ModelFiles

log = get_logger(__name__)

DISK_RESERVE_BYTES = 16 << 20
"""Never filled with inputs: results and the diary need room."""


class BlobCache:
    """`blobs/<hex>` whole and checked, `partial/<hex>` on their way, `models/<hex>-<files>/` of links to them.

    One process uses a cache at a time, any thread of it. Methods that hash or delete take as long as the disk does.
    What has been checked is everybody's. What a grid only says, or has sent a part of, is no other grid's.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, reserve_bytes: int = DISK_RESERVE_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.reserve_bytes = reserve_bytes
        self._lock = threading.RLock()
        self._pins: Counter[Digest] = Counter()
        self._sound: set[Digest] = set()
        """Hashed by this process, or by who brought them to it: disks and other programs damage files meanwhile."""
        for name in ("blobs", "partial", "models"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def path_of(self, digest: Digest) -> Path:
        return self.folder / "blobs" / _hex(digest)

    def partial_path(self, digest: Digest, tag: str = "") -> Path:
        """Where the bytes lie that a grid has sent so far, also after a restart."""
        return self.folder / "partial" / f"{tag}{_hex(digest)}"

    def partial_bytes(self, digest: Digest, tag: str = "") -> int:
        path = self.partial_path(digest, tag)
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

    def is_sound(self, digest: Digest, *, again: bool = False) -> bool:
        """Whether a blob that is here has its digest, hashed once a process or `again`; if not, it is removed."""
        if digest in self._sound and not again:
            return True
        path = self.path_of(digest)
        try:
            found = digest_of_file(path)
        except OSError as error:
            log.warning("cached blob can't be read", digest=digest, error=str(error))
            found = None
        if found == digest:
            self._sound.add(digest)
            return True
        log.warning("cached blob was damaged", digest=digest, found=found)
        self._sound.discard(digest)
        with self._lock, contextlib.suppress(FileNotFoundError):
            self._evict(path)
        return False

    def recheck(self, digests: Iterable[Digest], model: Digest) -> list[Digest]:
        """Hash what a worker could not use and remove what is damaged; the model's folder is made anew anyway."""
        with self._lock:
            for folder in (self.folder / "models").glob(f"{_hex(model)}*"):
                shutil.rmtree(folder, ignore_errors=True)
        return [digest for digest in dict.fromkeys(digests) if not self.is_sound(digest, again=True)]

    def models(self) -> frozenset[Digest]:
        """Models whose files are all here."""
        names = [path.name for path in (self.folder / "models").iterdir() if not path.suffix]
        return frozenset(Digest(f"sha256:{name.partition('-')[0]}") for name in names)

    def allow(self, *, limit_bytes: int, reserve_bytes: int) -> None:
        """What the owner allows from now on; more than that is evicted at once, as far as nothing needs it."""
        reserve_bytes = max(reserve_bytes, DISK_RESERVE_BYTES)
        if (limit_bytes, reserve_bytes) != (self.limit_bytes, self.reserve_bytes):
            self.limit_bytes, self.reserve_bytes = limit_bytes, reserve_bytes
            with contextlib.suppress(TooLargeError):
                self.make_room(0)

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
        with self._lock:
            self._make_room(size_bytes)

    def _make_room(self, size_bytes: int) -> None:
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
                f"cache: {size_bytes} more bytes do not fit into its {self.limit_bytes}; raise disk.cache_gb"
            )

    def _fits_on_disk(self, size_bytes: int) -> bool:
        # Others use the disk too: a limit says nothing of the room that is left.
        return shutil.disk_usage(self.folder).free >= size_bytes + self.reserve_bytes

    def adopt(self, source: Path, digest: Digest) -> Path:
        """Move a complete file in; raises DigestMismatchError, and deletes it, when it is something else."""
        found = digest_of_file(source)
        if found != digest:
            source.unlink()
            raise DigestMismatchError(f"blob {digest}: what came has digest {found}")
        self._sound.add(digest)
        return source.replace(self.path_of(digest))

    def keep(self, source: Path, digest: Digest) -> None:
        """Take a second name of a file that is known to be right, where there is room for it."""
        try:
            self.make_room(source.stat().st_size)
        except TooLargeError:
            return
        if not self.path_of(digest).exists():
            link(source, self.path_of(digest))
            self._sound.add(digest)

    def model_folder(self, model: ModelFiles) -> Path:
        """A folder with the model's files under their names; all its blobs must be here."""
        with self._lock:
            return self._model_folder(model)

    def _model_folder(self, model: ModelFiles) -> Path:
        # A grid says which files a model has, and only for itself.
        files = digest_of(canonical_json(sorted([file.name, file.digest] for file in model.files)))
        folder = self.folder / "models" / f"{_hex(model.digest)}-{_hex(files)[:16]}"
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
        self._sound.discard(Digest(f"sha256:{blob.name}"))
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
