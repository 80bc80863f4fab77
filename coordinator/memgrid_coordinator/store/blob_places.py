"""Where content is kept: the store that follows from what `--blobs` says."""

from __future__ import annotations

from pathlib import Path

from memgrid.errors import InvalidError
from memgrid_coordinator.settings import Settings
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.bucket_place import BucketPlace, parse_place


def blobs_of(settings: Settings) -> BlobStore:
    """The content store of a grid, as its settings say; raises what `open_blobs` raises."""
    place = parse_place(settings.blobs_url) if settings.blobs_url else settings.blobs
    return open_blobs(place, cache=settings.data / "blob-cache", cache_bytes=settings.blob_cache_bytes)


def folders_of(settings: Settings) -> tuple[Path, ...]:
    """The folders in which all files lie that the engine's functions read and write."""
    place = parse_place(settings.blobs_url) if settings.blobs_url else None
    return (settings.data, place) if isinstance(place, Path) else (settings.data,)


def open_blobs(place: Path | BucketPlace, *, cache: Path, cache_bytes: int) -> BlobStore:
    """The content store at a place; a bucket keeps what is in use in a bounded folder of this machine.

    Raises InvalidError for a bucket that is not there or not ours, UnavailableError for one that does not answer.
    """
    if isinstance(place, Path):
        return BlobStore(place)
    try:
        from memgrid_coordinator.store.bucket import BucketStore  # its client is an extra
    except ModuleNotFoundError:
        raise InvalidError("--blobs: buckets need the extra s3: pip install 'memgrid[s3]'") from None
    return BucketStore(place, cache, cache_bytes=cache_bytes)
