"""Bring a cube into the cache: the signature first, then the payload, and nothing in place before all of it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memgrid.cube.cube import MemCube
from memgrid.cube.manifest import MANIFEST_BYTES_MAX, MANIFEST_FILE, PROVENANCE_FILE, CubeManifest
from memgrid.cube.oci import CUBE_ARTIFACT_TYPE, Descriptor, OciManifest
from memgrid.cube.provenance import PROVENANCE_BYTES_MAX, check_provenance
from memgrid.digest import Digest
from memgrid.errors import InvalidError, NotVerifiedError, TooLargeError
from memgrid.pool.cache import CubeCache
from memgrid.pool.reference import Reference
from memgrid.pool.registry import Progress, Registry

_VERSION = re.compile(r"v?[0-9]")


class Puller:
    """Pulls from one registry into one cache, trusting the given keys."""

    def __init__(
        self, registry: Registry, cache: CubeCache, trusted_keys: Sequence[bytes], progress: Progress
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._trusted_keys = trusted_keys
        self._progress = progress

    def pull(self, wanted: Reference, manifest_digest: Digest, oci: OciManifest, name: str) -> MemCube:
        """The cube of an OCI manifest, verified, in the cache; `name` is remembered with it.

        Raises NotVerifiedError before the payload is fetched when the signature does not hold, TooLargeError when
        the cache or the disk has no room, UnavailableError when the line stays cut; what came stays for the next try.
        """
        if (cube := self.cached(wanted, manifest_digest, name)) is not None:
            self._progress(oci.total_bytes)
            return cube
        manifest = self.signed_manifest(wanted, oci)
        self._check_not_older(wanted, manifest, name)
        descriptors = (oci.config, *oci.layers)
        missing_bytes = sum(each.size_bytes for each in descriptors if not self._has(each))
        self._cache.make_room(missing_bytes, keep=frozenset(each.digest for each in descriptors))
        with self._cache.pulling():
            for descriptor in descriptors:
                self._fetch(wanted.repository, descriptor)
            return self._put(manifest_digest, manifest, oci, name)

    def cached(self, wanted: Reference, manifest_digest: Digest, name: str) -> MemCube | None:
        """A cube that is here already, verified again; a damaged one is dropped."""
        found = self._cache.find(manifest_digest)
        if found is None:
            return None
        try:
            cube = MemCube.open(found.folder)
            cube.verify(self._trusted_keys)
        except (NotVerifiedError, InvalidError):
            self._cache.remove(manifest_digest)
            return None
        check_name(cube.manifest, wanted)
        self._check_not_older(wanted, cube.manifest, name)
        self._cache.touch(manifest_digest, name)
        return cube

    def signed_manifest(self, wanted: Reference, oci: OciManifest) -> CubeManifest:
        """memcube.json, once a trusted key vouches for it and the OCI manifest lists what it lists.

        Raises NotVerifiedError, TooLargeError; costs a few kilobytes.
        """
        repository = wanted.repository
        provenance = next((layer for layer in oci.layers if layer.title == PROVENANCE_FILE), None)
        if provenance is None:
            raise NotVerifiedError(f"{repository}: no {PROVENANCE_FILE}: nobody has signed this cube")
        if oci.config.size_bytes > MANIFEST_BYTES_MAX or provenance.size_bytes > PROVENANCE_BYTES_MAX:
            raise TooLargeError(
                f"{repository}: its {MANIFEST_FILE} or {PROVENANCE_FILE} is larger than any should be"
            )
        content = self._registry.read_blob(repository, oci.config.digest, MANIFEST_BYTES_MAX)
        signed = self._registry.read_blob(repository, provenance.digest, PROVENANCE_BYTES_MAX)
        check_provenance(signed, content, self._trusted_keys)
        manifest = CubeManifest.from_bytes(content)
        check_name(manifest, wanted)
        listed = {layer.title: (layer.digest, layer.size_bytes) for layer in manifest.oci_layers(signed)}
        offered = {layer.title: (layer.digest, layer.size_bytes) for layer in oci.layers}
        for title in sorted(set(listed) | set(offered), key=str):
            if listed.get(title) != offered.get(title):
                raise NotVerifiedError(f"{repository}: {title}: the OCI manifest and the signed one do not agree")
        return manifest

    def _check_not_older(self, wanted: Reference, manifest: CubeManifest, name: str) -> None:
        """Raises NotVerifiedError when a moving tag such as `latest` leads back behind what it led to before.

        Whoever may push tags, or stands between, has yesterday's cubes with their true signatures.
        """
        known = self._cache.find_name(name)
        if known is None or wanted.digest is not None:
            return
        before = MemCube.open(known.folder).manifest.version
        if _numbers(manifest.version) < _numbers(before):
            raise NotVerifiedError(
                f"{wanted}: the pool offers version {manifest.version}, and {before} is here already;"
                " to go back on purpose, name the version"
            )

    def _fetch(self, repository: str, descriptor: Descriptor) -> None:
        with self._cache.fetching(descriptor.digest) as partial:
            if self._has(descriptor):
                self._progress(descriptor.size_bytes)
                return
            if partial.exists():
                self._progress(min(partial.stat().st_size, descriptor.size_bytes))
            size_bytes = descriptor.size_bytes
            self._registry.fetch_blob(repository, descriptor.digest, size_bytes, partial, self._progress)
            self._cache.adopt(partial, descriptor.digest)

    def _put(self, manifest_digest: Digest, manifest: CubeManifest, oci: OciManifest, name: str) -> MemCube:
        files = {layer.title: layer.digest for layer in oci.layers if layer.title is not None}
        with self._cache.staging() as staged:
            self._cache.make_folder(staged, {MANIFEST_FILE: oci.config.digest, **files})
            self._verify_staged(MemCube.open(staged), manifest)
            placed = self._cache.put_cube(staged, manifest_digest, oci, name)
        # Every byte has just been verified, under the name it had before the move.
        return MemCube.open(placed.folder, trusted=True)

    def _verify_staged(self, staged: MemCube, manifest: CubeManifest) -> None:
        try:
            staged.verify(self._trusted_keys)
        except NotVerifiedError:
            # Content was checked as it came in, so what fails now was damaged in the cache since: fetch it anew.
            for file in manifest.listed():
                self._cache.drop_blob(file.digest)
            raise

    def _has(self, descriptor: Descriptor) -> bool:
        return self._cache.has(descriptor.digest, descriptor.size_bytes)


def check_name(manifest: CubeManifest, wanted: Reference) -> None:
    """Raises NotVerifiedError for a cube that was signed under another name or version than it stands under.

    A tag that does not begin like a version, such as `latest`, may lead to any of them; a digest says it all.
    """
    if wanted.digest is not None:
        return
    if manifest.name != wanted.repository:
        raise NotVerifiedError(f"{wanted}: what stands there was signed as {manifest.name}")
    if _VERSION.match(wanted.tag) and manifest.version != wanted.tag:
        raise NotVerifiedError(f"{wanted}: what stands there was signed as version {manifest.version}")


def _numbers(version: str) -> tuple[int, ...]:
    """What versions are ordered by: 1.10.0 comes after 1.9."""
    return tuple(int(number) for number in re.findall(r"[0-9]{1,18}", version))


def cube_manifest(content: bytes, name: str) -> OciManifest:
    """An OCI manifest that must be a cube's; raises InvalidError."""
    oci = OciManifest.from_bytes(content)
    if oci.artifact_type != CUBE_ARTIFACT_TYPE:
        raise InvalidError(f"{name} is no cube but {oci.artifact_type}")
    return oci
