"""Put manifests into the pool and find them again: by tag, by digest, by what they are about."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.cube.oci import MODEL_ARTIFACT_TYPE
from memgrid.digest import Digest, digest_of, parse_digest
from memgrid.errors import DigestMismatchError, InvalidError, NotAllowedError, UnknownCubeError, UnknownIdError
from memgrid.pool.reference import Reference
from memgrid_coordinator.policy.manifests import Manifest, model_files, parse_manifest
from memgrid_coordinator.policy.repositories import (
    ORDERED,
    RepositoryKind,
    check_push,
    check_read,
    kind_of,
    may_read,
    parse_repository,
    parse_tag,
)
from memgrid_coordinator.records import ANONYMOUS, Caller, CubeFacts, PoolCube, PoolManifest
from memgrid_coordinator.store import audit_log, pool, retractions
from memgrid_coordinator.store.blobs import BlobStore, Pieces
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.retractions import Retraction

PAGE_MAX = 1000
"""Entries in one answer of a list; more are asked for page by page."""
_WORDS_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """Content that may be sent to whoever asked for it: from a file, or from elsewhere in pieces."""

    digest: Digest
    path: Path
    size_bytes: int
    pieces: Pieces | None = None


def stored_blob(blobs: BlobStore, digest: Digest) -> StoredBlob:
    """Where some content is to be read from; raises UnknownIdError. Takes as long as the store does."""
    size_bytes = blobs.size_of(digest)
    return StoredBlob(digest=digest, path=blobs.path_of(digest), size_bytes=size_bytes, pieces=blobs.streams(digest))


class Publishing:
    """The pool. Every method that takes a `caller` first asks whether that caller may."""

    def __init__(self, store: Store, blobs: BlobStore, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock

    async def find_blob(self, caller: Caller, repository: str, digest: Digest) -> StoredBlob:
        """A blob to be read through a repository; raises UnknownIdError when it can't be."""
        check_read(caller, repository)
        found_in = await self._store.read(partial(pool.repositories_of_blob, digest=digest))
        if kind_of(repository) is RepositoryKind.INPUTS:
            # Unit inputs are in no manifest. What was pushed as a source is no input, whoever knows its digest.
            readable = any(kind_of(name) is not RepositoryKind.SOURCES for name in found_in) or not found_in
        else:
            readable = repository in found_in
        if not readable:
            raise UnknownIdError(f"blob {digest} is not in {repository}")
        return await asyncio.to_thread(stored_blob, self._blobs, digest)

    async def mount_blob(self, caller: Caller, repository: str, digest: Digest, source: str) -> bool:
        """Let a blob of another repository be read through this one too; False when it isn't there."""
        check_push(caller, repository)
        if kind_of(repository) in ORDERED:
            return False  # a volunteer shows that it has an output by sending it
        try:
            await self.find_blob(caller, source, digest)
        except UnknownIdError:
            return False
        await self._store.write(partial(pool.link_blobs, repository=repository, digests=[digest]))
        return True

    def admit_manifest(self, caller: Caller, repository: str) -> None:
        """Called before a manifest is read; raises NotAllowedError, TokenRequiredError."""
        check_push(caller, repository)
        if kind_of(repository) in ORDERED:
            raise NotAllowedError(f"{repository} holds what was ordered of a host, no manifests")

    async def put_manifest(
        self, caller: Caller, repository: str, reference: str, content: bytes, media_type: str
    ) -> PoolManifest:
        """Store a manifest under a tag or its own digest; returns once it is on disk.

        Raises InvalidError, UnknownIdError (a blob it names is missing), DigestMismatchError, TooLargeError.
        """
        self.admit_manifest(caller, repository)
        manifest = self._as_pushed(repository, content, media_type)
        tags = () if _is_digest(reference) else (parse_tag(reference),)
        if not tags and reference != manifest.digest:
            raise DigestMismatchError(f"manifest: pushed as {reference}, but its bytes are {manifest.digest}")
        await self._add(manifest, parse_manifest(content, media_type), tags, pusher=caller)
        return manifest

    async def publish_cube(
        self,
        *,
        repository: str,
        version: str,
        tags: Sequence[str],
        manifest: bytes,
        media_type: str,
        facts: CubeFacts,
    ) -> Digest:
        """Make a cube visible under its version and further tags, all at once; returns the manifest's digest.

        Its blobs are in the content store already. Doing it again changes nothing. Raises InvalidError,
        UnknownIdError when a blob is missing.
        """
        stored = self._as_pushed(parse_repository(repository), manifest, media_type)
        every_tag = [parse_tag(tag) for tag in dict.fromkeys((version, *tags))]
        await self._add(stored, parse_manifest(manifest, media_type), every_tag, facts)
        return stored.digest

    def _as_pushed(self, repository: str, content: bytes, media_type: str) -> PoolManifest:
        manifest = parse_manifest(content, media_type)
        if manifest.artifact_type == MODEL_ARTIFACT_TYPE:
            model_files(manifest)
        return PoolManifest(
            repository=repository,
            digest=digest_of(content),
            media_type=manifest.media_type,
            artifact_type=manifest.artifact_type,
            subject=manifest.subject,
            content=content,
        )

    async def _add(
        self,
        stored: PoolManifest,
        manifest: Manifest,
        tags: Sequence[str],
        facts: CubeFacts | None = None,
        pusher: Caller | None = None,
    ) -> None:
        await asyncio.to_thread(self._check_blobs, manifest)
        now = self._clock.now()

        def step(connection: Connection) -> None:
            for child in manifest.manifests:
                if pool.find_manifest(connection, stored.repository, child.digest) is None:
                    raise UnknownIdError(
                        f"manifest: it names manifest {child.digest}, which is not here; push it first"
                    )
            pool.link_blobs(connection, stored.repository, [blob.digest for blob in manifest.blobs])
            pool.add_manifest(connection, stored, now)
            for tag in tags:
                pool.set_tag(connection, stored.repository, tag, stored.digest, now)
            if facts is not None:
                pool.set_cube(connection, stored.repository, tags[0], stored.digest, facts, now)
            if pusher is not None:
                named = f"{stored.repository}:{tags[0]}" if tags else stored.repository
                audit_log.note(connection, pusher, "pool_push", named, now, detail=stored.digest)

        await self._store.write(step)

    def _check_blobs(self, manifest: Manifest) -> None:
        for blob in manifest.blobs:
            if not self._blobs.renew(blob.digest):
                raise UnknownIdError(f"manifest: it names blob {blob.digest}, which is not here; push it first")
            if (size_bytes := self._blobs.size_of(blob.digest)) != blob.size_bytes:
                raise InvalidError(
                    f"manifest: it says blob {blob.digest} has {blob.size_bytes} bytes; it has {size_bytes}"
                )

    async def find_manifest(self, caller: Caller, repository: str, reference: str) -> PoolManifest:
        """The manifest a tag or digest stands for; raises UnknownCubeError, which tells why a cube was retracted."""
        check_read(caller, repository)
        name = parse_digest(reference) if _is_digest(reference) else parse_tag(reference)

        def query(connection: Connection) -> PoolManifest | Retraction | None:
            digest = Digest(name) if _is_digest(name) else pool.digest_of_tag(connection, repository, name)
            found = None if digest is None else pool.find_manifest(connection, repository, digest)
            return found or retractions.of_reference(connection, repository, name)

        found = await self._store.read(query)
        if isinstance(found, PoolManifest):
            return found
        if found is not None:
            when = f"{found.at:%Y-%m-%d %H:%M} UTC"
            raise UnknownCubeError(f"{repository}, {reference}: retracted on {when}: {found.reason.text}")
        raise UnknownCubeError(f"nothing in the pool is called {repository}, {reference}")

    async def resolve(self, text: str) -> PoolManifest:
        """What `namespace/name[:tag][@digest]` stands for, for everybody; raises InvalidError, UnknownCubeError."""
        reference = Reference.parse(text)
        return await self.find_manifest(ANONYMOUS, reference.repository, reference.wanted)

    async def remove_manifest(self, caller: Caller, repository: str, reference: str) -> None:
        """Take a tag away, or by digest a manifest, its tags, and what only it made readable.

        The bytes stay in the content store. Raises UnknownCubeError.
        """
        check_push(caller, repository)
        remove = _remove_manifest if _is_digest(reference) else pool.remove_tag
        name = parse_digest(reference) if _is_digest(reference) else parse_tag(reference)
        now = self._clock.now()

        def step(connection: Connection) -> bool:
            if not remove(connection, repository, name):
                return False
            audit_log.note(connection, caller, "pool_remove", f"{repository}, {reference}", now)
            return True

        if not await self._store.write(step):
            raise UnknownCubeError(f"nothing in the pool is called {repository}, {reference}")

    async def tags(self, caller: Caller, repository: str, *, after: str, limit: int) -> list[str]:
        """Tags in order; raises UnknownIdError when nothing was ever put under that name."""
        check_read(caller, repository)

        def query(connection: Connection) -> list[str] | None:
            if not pool.has_repository(connection, repository):
                return None
            return pool.tags(connection, repository, after=after, limit=min(limit, PAGE_MAX))

        found = await self._store.read(query)
        if found is None:
            raise UnknownIdError(f"repository {repository} is not in this pool")
        return found

    async def repositories(self, caller: Caller, *, after: str, limit: int) -> list[str]:
        """Repositories with a manifest that the caller may read, in order."""
        limit = min(limit, PAGE_MAX)
        readable: list[str] = []
        while len(readable) < limit:
            page = await self._store.read(partial(pool.repositories, after=after, limit=PAGE_MAX))
            readable += [name for name in page if may_read(caller, name)]
            if len(page) < PAGE_MAX:
                break
            after = page[-1]
        return readable[:limit]

    async def referrers(self, caller: Caller, repository: str, subject: Digest) -> list[PoolManifest]:
        """Manifests that are about another one: signatures, evaluations, torrents. None is no error."""
        check_read(caller, repository)
        return await self._store.read(partial(pool.manifests_of_subject, repository=repository, subject=subject))

    async def search(self, text: str, *, base: str = "", kind: str = "", limit: int = 50) -> list[PoolCube]:
        """Cubes that have every word of `text`, newest first; an empty filter lets everything through."""
        words = text.split()[:_WORDS_MAX]
        return await self._store.read(
            partial(pool.find_cubes, words=words, base=base, kind=kind, limit=min(limit, PAGE_MAX))
        )


def _remove_manifest(connection: Connection, repository: str, digest: str) -> bool:
    found = pool.find_manifest(connection, repository, parse_digest(digest))
    if found is None:
        return False
    pool.remove_manifest(connection, repository, found.digest)
    still_named = {blob for manifest in pool.manifests(connection, repository) for blob in _blobs_of(manifest)}
    pool.unlink_blobs(connection, repository, _blobs_of(found) - still_named)
    return True


def _blobs_of(stored: PoolManifest) -> set[Digest]:
    return {blob.digest for blob in parse_manifest(stored.content, stored.media_type).blobs}


def _is_digest(reference: str) -> bool:
    return ":" in reference
