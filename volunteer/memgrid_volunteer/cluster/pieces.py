"""Files in pieces: read from where they lie, and written where sizes and digests are checked on arrival."""

from __future__ import annotations

from pathlib import Path

from memgrid.digest import digest_of_file
from memgrid.errors import DigestMismatchError, InvalidError
from memgrid.units import BlobRef
from memgrid_volunteer.cluster.words import PIECE_BYTES


def offsets(size_bytes: int) -> range:
    """Where the pieces of a file begin; an empty file has one, that is empty.

    >>> list(offsets(0)), len(offsets(PIECE_BYTES)), len(offsets(PIECE_BYTES + 1))
    ([0], 1, 2)
    """
    return range(0, max(1, size_bytes), PIECE_BYTES)


def read_piece(path: Path, offset: int) -> bytes:
    """The piece that begins there."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)


def write_piece(path: Path, blob: BlobRef, offset: int, piece: bytes) -> bool:
    """Add a piece to what came before it; whether that was the last one.

    Raises InvalidError for one that does not belong there, and then nothing has changed.
    """
    expected = min(PIECE_BYTES, blob.size_bytes - offset)
    so_far = path.stat().st_size if offset and path.exists() else 0
    if offset not in offsets(blob.size_bytes) or len(piece) != expected or so_far != offset:
        raise InvalidError(
            f"{blob.name}: expected {expected} bytes at {so_far} of {blob.size_bytes}, got {len(piece)} at {offset}"
        )
    with path.open("ab" if offset else "wb") as file:
        file.write(piece)
    return offset + len(piece) == blob.size_bytes


def check(path: Path, blob: BlobRef) -> None:
    """Raises DigestMismatchError unless a file that has come is the one that was announced."""
    found = digest_of_file(path)
    if found != blob.digest:
        raise DigestMismatchError(f"{blob.name}: what came has digest {found}, not {blob.digest}")
