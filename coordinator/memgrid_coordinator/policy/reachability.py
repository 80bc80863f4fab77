"""Which content nobody can ask for any more: what no living row names, once it is old enough."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from memgrid.digest import Digest

_DIGEST = re.compile(rb"sha256:([0-9a-f]{16})[0-9a-f]{48}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBlob:
    """A blob as the content store lists it; `renewed_at` is when somebody last put it, or was about to name it."""

    digest: Digest
    size_bytes: int
    renewed_at: datetime


class Reachable:
    """The digests that rows name, in eight bytes each, so that millions of them take megabytes.

    Anything that looks like a digest counts, wherever in a row it stands: a kind of unit that nobody has thought
    of yet keeps its inputs all the same. Two digests that begin alike count as one: at worst a blob is kept too long.

    >>> from memgrid.digest import digest_of
    >>> reachable = Reachable()
    >>> reachable.add([b'{"tokens":"' + digest_of(b"kept").encode() + b'"}'])
    >>> reachable.holds([digest_of(b"kept"), digest_of(b"forgotten")])
    [True, False]
    """

    def __init__(self) -> None:
        self._gathered = array("Q")
        self._sorted: npt.NDArray[np.uint64] | None = None

    def add(self, texts: Iterable[bytes]) -> None:
        """Take up every digest that stands in these."""
        for text in texts:
            self._gathered.extend(int(begin, 16) for begin in _DIGEST.findall(text))
        self._sorted = None

    def holds(self, digests: Sequence[Digest]) -> list[bool]:
        """Whether each of these is named somewhere."""
        if self._sorted is None:
            self._sorted = np.unique(np.frombuffer(self._gathered, dtype=np.uint64))
        if not len(self._sorted):
            return [False] * len(digests)
        wanted = np.array([int(digest[7:23], 16) for digest in digests], dtype=np.uint64)
        places = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return [bool(found) for found in self._sorted[places] == wanted]

    def __len__(self) -> int:
        return len(self._gathered)


def garbage_of(blobs: Sequence[KeptBlob], reachable: Reachable, older_than: datetime) -> list[KeptBlob]:
    """Of these, the blobs that nobody names and nobody has touched since.

    The time of grace is for what comes in before anything names it: sources before their campaign, layers before
    their manifest.

    >>> from datetime import UTC; from memgrid.digest import digest_of
    >>> old = KeptBlob(digest=digest_of(b"x"), size_bytes=1, renewed_at=datetime(2026, 1, 1, tzinfo=UTC))
    >>> garbage_of([old], Reachable(), datetime(2026, 1, 2, tzinfo=UTC)) == [old]
    True
    >>> garbage_of([old], Reachable(), datetime(2025, 12, 31, tzinfo=UTC))
    []
    """
    old = [blob for blob in blobs if blob.renewed_at < older_than]
    named = reachable.holds([blob.digest for blob in old])
    return [blob for blob, is_named in zip(old, named, strict=True) if not is_named]
