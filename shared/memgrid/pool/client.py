"""The pool as consumers see it: search, look at the price, pull, verify, keep, push."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx

from memgrid.access import TOKEN_VARIABLE, token_of
from memgrid.clock import Clock, SystemClock
from memgrid.cube.cube import MemCube, Verification
from memgrid.cube.info import CubeInfo
from memgrid.cube.oci import EMPTY_CONTENT, EMPTY_TYPE, OciManifest
from memgrid.digest import Digest
from memgrid.endpoint import GridUrl, discover, http_client
from memgrid.errors import InvalidError, UnavailableError, UnknownCubeError
from memgrid.grids import GridTrust, memgrid_home
from memgrid.pool.cache import CachedCube, CubeCache
from memgrid.pool.folders import push_artifact, push_bytes, push_file, titled_files
from memgrid.pool.offers import Listing, Offer, listings_from_json
from memgrid.pool.patient import PatientClient
from memgrid.pool.pulling import Puller, cube_manifest
from memgrid.pool.reference import Reference
from memgrid.pool.registry import Progress, Registry

_SEARCH_BYTES_MAX = 8 << 20


def _unwatched(size_bytes: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """An open connection to the grid."""

    http: httpx.Client
    client: PatientClient
    registry: Registry
    url: str
    grid_key: bytes


class Pool:
    """A grid's pool, with a cache on this machine.

        from memgrid import Pool

        cube = Pool("https://grid.example").pull("peps/pep-0008")
        cache = cube.attach(model)

    `url` defaults to $MEMGRID_GRID, or to the one grid this user has met; `token`, which may be `@FILE`, to
    $MEMGRID_TOKEN. The network is asked only when it is needed: `ls`, `rm`, and pulling what is here already by its
    digest, work without.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        cache: CubeCache | Path | str | None = None,
        *,
        home: Path | None = None,
        insecure: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._home = home or memgrid_home()
        self._given_url = url or os.environ.get("MEMGRID_GRID")
        self._token = token or os.environ.get(TOKEN_VARIABLE)
        self._insecure = insecure
        self._clock = clock or SystemClock()
        if not isinstance(cache, CubeCache):
            cache = CubeCache(Path(cache) if cache else None, clock=self._clock)
        self.cache = cache
        self._line: _Line | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the pool opens a new one when it is used again."""
        if self._line is not None:
            self._line.http.close()
            self._line = None

    def search(
        self, query: str = "", *, base: str | None = None, kind: str | None = None, limit: int = 50
    ) -> list[Listing]:
        """Cubes that have every word of `query`, of a base model and a kind where given, newest first."""
        wanted = {"q": query, "base": base or "", "kind": kind or "", "limit": str(limit)}
        path = f"/v1/cubes?{httpx.QueryParams(wanted)}"
        return listings_from_json(self._connect().client.read(path, _SEARCH_BYTES_MAX))

    def info(self, reference: str) -> Offer:
        """A cube's price tag, for a few kilobytes and with its signature checked.

        Raises UnknownCubeError, NotVerifiedError, InvalidError for what is no cube.
        """
        wanted = Reference.parse(reference)
        manifest_digest, oci = self._manifest(wanted)
        manifest = self._puller(_unwatched).signed_manifest(wanted, oci)
        blobs = (oci.config, *oci.layers)
        return Offer(
            reference=str(wanted),
            manifest_digest=manifest_digest,
            info=CubeInfo.of(manifest),
            download_bytes=oci.total_bytes,
            missing_bytes=sum(blob.size_bytes for blob in blobs if not self.cache.has(blob.digest, blob.size_bytes)),
        )

    def measure_line(self, reference: str) -> float:
        """Bytes per second from the grid to here, measured on the beginning of the cube's largest file."""
        wanted = Reference.parse(reference)
        _, oci = self._manifest(wanted)
        largest = max(oci.layers, key=lambda layer: layer.size_bytes)
        registry = self._connect().registry
        return registry.probe_line(wanted.repository, largest.digest, largest.size_bytes, self._clock.monotonic_s)

    def pull(self, reference: str, into: Path | str | None = None, *, progress: Progress = _unwatched) -> MemCube:
        """A verified cube, from the cache or the grid; with `into` also a copy in that (new or empty) folder.

        A cut download goes on where it was cut at the next call. When the grid does not answer, the copy last
        pulled under that name serves. Raises UnknownCubeError, NotVerifiedError, TooLargeError, UnavailableError.
        """
        wanted = Reference.parse(reference)
        target = None if into is None else _free_folder(Path(into))
        cube = self._pull(wanted, progress)
        return cube if target is None else self._copy(cube, target)

    def verify(self, reference: str) -> Verification:
        """Check a cube that was pulled: every byte, and the grid's signature. Raises NotVerifiedError."""
        found = self._cached(Reference.parse(reference))
        return MemCube.open(found.folder).verify([self._grid_key()])

    def ls(self) -> list[CachedCube]:
        """The cubes on this machine, the longest unused first."""
        return self.cache.cubes()

    def rm(self, reference: str) -> int:
        """Forget a cube on this machine; returns the bytes freed, less than its size where others share them."""
        return self.cache.remove(self._cached(Reference.parse(reference)).manifest_digest)

    def push_blob(self, repository: str, content: Path | bytes, *, progress: Progress = _unwatched) -> Digest:
        """Push one blob; needs a token that may."""
        registry = self._connect().registry
        if isinstance(content, bytes):
            return push_bytes(registry, repository, content, progress)
        return push_file(registry, repository, content, progress).digest

    def push_folder(
        self,
        repository: str,
        tag: str,
        files: Path | Sequence[Path] | Mapping[str, Path],
        artifact_type: str,
        *,
        config: bytes = EMPTY_CONTENT,
        config_type: str = EMPTY_TYPE,
        annotations: Mapping[str, str] | None = None,
        progress: Progress = _unwatched,
    ) -> Digest:
        """Push a folder, a list of files, or files by title as one artefact; returns the manifest's digest."""
        target = Reference.parse(f"{repository}:{tag}")
        return push_artifact(
            self._connect().registry,
            target.repository,
            target.tag,
            titled_files(files),
            artifact_type=artifact_type,
            config=config,
            config_type=config_type,
            annotations=annotations or {},
            progress=progress,
        )

    def _pull(self, wanted: Reference, progress: Progress) -> MemCube:
        if wanted.digest is not None and self.cache.find(wanted.digest) is not None:
            return self._from_cache(wanted)
        try:
            manifest_digest, oci = self._manifest(wanted)
        except UnavailableError:
            if self._find_cached(wanted) is None:
                raise
            return self._from_cache(wanted)
        return self._puller(progress).pull(wanted, manifest_digest, oci, self._full_name(wanted))

    def _puller(self, progress: Progress) -> Puller:
        line = self._connect()
        return Puller(line.registry, self.cache, [line.grid_key], progress)

    def _from_cache(self, wanted: Reference) -> MemCube:
        found = self._cached(wanted)
        cube = MemCube.open(found.folder)
        cube.verify([self._grid_key()])
        self.cache.touch(found.manifest_digest, self._full_name(wanted))
        return cube

    def _copy(self, cube: MemCube, target: Path) -> MemCube:
        """A copy, not links: whoever edits it must not edit the cache."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            staged = Path(scratch) / target.name
            shutil.copytree(cube.folder, staged, copy_function=shutil.copyfile)
            staged.replace(target)
        copied = MemCube.open(target)
        copied.verify([self._grid_key()])
        return copied

    def _manifest(self, wanted: Reference) -> tuple[Digest, OciManifest]:
        digest, content = self._connect().registry.manifest(wanted.repository, wanted.wanted)
        return digest, cube_manifest(content, str(wanted))

    def _cached(self, wanted: Reference) -> CachedCube:
        found = self._find_cached(wanted)
        if found is None:
            raise UnknownCubeError(f"{wanted} is not on this machine; pull it first")
        return found

    def _find_cached(self, wanted: Reference) -> CachedCube | None:
        if wanted.digest is not None:
            return self.cache.find(wanted.digest)
        return self.cache.find_name(self._full_name(wanted))

    def _full_name(self, wanted: Reference) -> str:
        """The name with its grid: two grids may call different cubes the same."""
        return f"{self._base_url()}/{wanted.repository}:{wanted.tag}"

    def _grid_key(self) -> bytes:
        """The key that signs the grid's cubes, remembered from when it was met."""
        if self._line is not None:
            return self._line.grid_key
        known = GridTrust(self._home).find(self._base_url())
        return self._connect().grid_key if known is None else known.grid_key

    def _url(self) -> str:
        if self._given_url:
            return self._given_url
        known = GridTrust(self._home).all()
        if len(known) != 1:
            choice = ", ".join(grid.url for grid in known) or "none yet"
            raise InvalidError(f"which grid? give --grid URL or set MEMGRID_GRID (known here: {choice})")
        return known[0].url

    def _base_url(self) -> str:
        return GridUrl.parse(self._url(), insecure=self._insecure).base

    def _connect(self) -> _Line:
        if self._line is None:
            endpoint = discover(self._url(), home=self._home, insecure=self._insecure)
            http = http_client(endpoint, token_of(self._token))
            client = PatientClient(http)
            self._line = _Line(
                http=http,
                client=client,
                registry=Registry(client),
                url=endpoint.url,
                grid_key=endpoint.grid_key,
            )
        return self._line


def _free_folder(path: Path) -> Path:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidError(f"{path} is there already; give a new or empty folder")
    return path
