"""Cubes and blobs on this machine: each content once, under its digest, within a size limit.

blobs/sha256/ab/<hex>     content; read-only, since cube folders are made of links to it
partial/<hex>             what a cut download left
cubes/<hex>/              one folder a cube, by the digest of its OCI manifest
cubes/<hex>.json          what is in it and which names it was pulled under; its time is that of the last use
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from memgrid.clock import Clock, SystemClock
from memgrid.cube.oci import OciManifest
from memgrid.digest import Digest, digest_of_file, parse_digest
from memgrid.errors import DigestMismatchError, InvalidError, TooLargeError

try:
    import fcntl
except ImportError:  # Windows: two processes pulling at once may then do the same work twice
    fcntl = None  # type: ignore[assignment]

DEFAULT_LIMIT_BYTES = 50_000_000_000
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedCube:
    """A cube that is here whole."""

    manifest_digest: Digest
    names: tuple[str, ...]
    """References it was pulled under, the newest last."""
    blobs: Mapping[Digest, int]
    folder: Path
    used_at: datetime

    @property
    def size_bytes(self) -> int:
        return sum(self.blobs.values())


class CubeCache:
    """A folder with the layout above; several processes may use it at once."""

    def __init__(
        self, folder: Path | None = None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES, clock: Clock | None = None
    ) -> None:
        self.folder = folder or default_cache_folder()
        self.limit_bytes = limit_bytes
        self._clock = clock or SystemClock()
        for name in ("blobs/sha256", "partial", "cubes"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def path_of(self, digest: Digest) -> Path:
        digits = parse_digest(digest).removeprefix("sha256:")
        return self.folder / "blobs" / "sha256" / digits[:2] / digits

    def partial_path(self, digest: Digest) -> Path:
        return self.folder / "partial" / parse_digest(digest).removeprefix("sha256:")

    def has(self, digest: Digest, size_bytes: int) -> bool:
        path = self.path_of(digest)
        return path.is_file() and path.stat().st_size == size_bytes

    def adopt(self, partial: Path, digest: Digest) -> Path:
        """Take a downloaded file in after checking it; raises DigestMismatchError and forgets it otherwise."""
        found = digest_of_file(partial)
        if found != digest:
            partial.unlink()
            raise DigestMismatchError(f"blob {digest}: the bytes that came are {found}; pull again")
        path = self.path_of(digest)
        path.parent.mkdir(exist_ok=True)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o444)
        partial.replace(path)
        return path

    def drop_blob(self, digest: Digest) -> None:
        """Forget content that turned out damaged."""
        self.path_of(digest).unlink(missing_ok=True)

    @contextlib.contextmanager
    def pulling(self) -> Iterator[None]:
        """While a pull is under way, nobody drops blobs that belong to no cube yet."""
        with self._lock("pulling.lock", shared=True):
            yield

    @contextlib.contextmanager
    def fetching(self, digest: Digest) -> Iterator[Path]:
        """Hold a blob's partial file against other processes while it is being filled."""
        with self._lock(f"partial/{digest.removeprefix('sha256:')}.lock"):
            yield self.partial_path(digest)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder beside the cubes that is gone afterwards, unless it was moved into place."""
        folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.folder / "cubes"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def make_folder(self, folder: Path, files: Mapping[str, Digest]) -> None:
        """Fill a folder with cached content by name: links where the file system has them, else copies."""
        for name, digest in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path_of(digest), target)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                    raise
                shutil.copyfile(self.path_of(digest), target)

    def put_cube(self, staged: Path, manifest_digest: Digest, manifest: OciManifest, name: str) -> CachedCube:
        """Move a verified folder into place, or find that another process was faster."""
        folder = self._cube_folder(manifest_digest)
        with self._lock("lock"):
            if not folder.exists():
                staged.chmod(0o755)
                staged.replace(folder)
            blobs = {layer.digest: layer.size_bytes for layer in (manifest.config, *manifest.layers)}
            self._write_record(manifest_digest, self._names(manifest_digest, name), blobs)
        cube = self.find(manifest_digest)
        assert cube is not None
        return cube

    def find(self, manifest_digest: Digest) -> CachedCube | None:
        record = self._record_path(manifest_digest)
        folder = self._cube_folder(manifest_digest)
        try:
            value = json.loads(record.read_bytes())
            used_at = datetime.fromtimestamp(record.stat().st_mtime, UTC)
            names, blobs = tuple(value["names"]), {Digest(key): int(size) for key, size in value["blobs"].items()}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidError(f"{record}: damaged; remove it and {folder}, and pull again") from None
        if not folder.is_dir():
            return None
        return CachedCube(manifest_digest=manifest_digest, names=names, blobs=blobs, folder=folder, used_at=used_at)

    def find_name(self, name: str) -> CachedCube | None:
        """The cube last pulled under a name."""
        named = [cube for cube in self.cubes() if name in cube.names]
        return max(named, key=lambda cube: cube.used_at, default=None)

    def cubes(self) -> list[CachedCube]:
        """Every cube here, the longest unused first."""
        digests = [Digest(f"sha256:{path.stem}") for path in (self.folder / "cubes").glob("*.json")]
        found = [cube for digest in digests if (cube := self.find(digest)) is not None]
        return sorted(found, key=lambda cube: (cube.used_at, cube.manifest_digest))

    def touch(self, manifest_digest: Digest, name: str) -> None:
        """Note that a cube was used, and under which name."""
        with self._lock("lock"):
            cube = self.find(manifest_digest)
            if cube is not None:
                self._write_record(manifest_digest, self._names(manifest_digest, name), cube.blobs)

    def remove(self, manifest_digest: Digest) -> int:
        """Forget a cube and every blob only it used; returns the bytes that became free."""
        with self._lock("lock"):
            before = self.used_bytes()
            self._record_path(manifest_digest).unlink(missing_ok=True)
            shutil.rmtree(self._cube_folder(manifest_digest), ignore_errors=True)
            self._drop_unused_blobs(keep=frozenset())
            return before - self.used_bytes()

    def make_room(self, wanted_bytes: int, keep: frozenset[Digest] = frozenset()) -> None:
        """Forget the longest unused cubes until so much more fits; raises TooLargeError when it never can.

        `keep` are blobs that the coming cube shares with those here.
        """
        if wanted_bytes > self.limit_bytes:
            raise TooLargeError(
                f"a cube of {wanted_bytes} bytes does not fit a cache of {self.limit_bytes}; raise the limit"
            )
        with self._lock("lock"):
            self._drop_unused_blobs(keep)
            oldest = self.cubes()
            while self.used_bytes() + wanted_bytes > self.limit_bytes and oldest:
                cube = oldest.pop(0)
                self._record_path(cube.manifest_digest).unlink(missing_ok=True)
                shutil.rmtree(cube.folder, ignore_errors=True)
                self._drop_unused_blobs(keep)
        free_bytes = shutil.disk_usage(self.folder).free
        if wanted_bytes + _SPARE_BYTES > free_bytes:
            raise TooLargeError(f"{wanted_bytes} bytes are needed, the disk has {free_bytes} free")

    def used_bytes(self) -> int:
        """What the blobs take; cube folders are links to them."""
        return sum(path.stat().st_size for path in (self.folder / "blobs" / "sha256").glob("*/*"))

    def _drop_unused_blobs(self, keep: frozenset[Digest]) -> None:
        """Skipped while somebody pulls: their blobs belong to no cube yet, and the next call drops what is left."""
        with self._try_lock("pulling.lock") as is_alone:
            if not is_alone:
                return
            used = {digest for cube in self.cubes() for digest in cube.blobs} | keep
            hexes = {digest.removeprefix("sha256:") for digest in used}
            for path in (self.folder / "blobs" / "sha256").glob("*/*"):
                if path.name not in hexes:
                    path.unlink(missing_ok=True)

    def _names(self, manifest_digest: Digest, name: str) -> list[str]:
        cube = self.find(manifest_digest)
        return [*(known for known in (cube.names if cube else ()) if known != name), name]

    def _write_record(self, manifest_digest: Digest, names: list[str], blobs: Mapping[Digest, int]) -> None:
        record = self._record_path(manifest_digest)
        handle, scratch = tempfile.mkstemp(dir=record.parent, prefix=".record-")
        with os.fdopen(handle, "w") as file:
            json.dump({"names": names, "blobs": dict(blobs)}, file)
        now_s = self._clock.now().timestamp()
        os.utime(scratch, (now_s, now_s))
        Path(scratch).replace(record)

    def _cube_folder(self, manifest_digest: Digest) -> Path:
        return self.folder / "cubes" / parse_digest(manifest_digest).removeprefix("sha256:")

    def _record_path(self, manifest_digest: Digest) -> Path:
        return self._cube_folder(manifest_digest).with_suffix(".json")

    @contextlib.contextmanager
    def _lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        if fcntl is None:
            yield
            return
        with (self.folder / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _try_lock(self, name: str) -> Iterator[bool]:
        if fcntl is None:
            yield True
            return
        with (self.folder / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def default_cache_folder() -> Path:
    """$MEMGRID_CACHE, or where the system keeps caches."""
    chosen = os.environ.get("MEMGRID_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("memgrid")
