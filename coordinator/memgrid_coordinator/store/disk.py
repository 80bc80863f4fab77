"""What a disk refuses, in words for whoever waits for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from memgrid.errors import UnavailableError

_WORDS = {
    errno.ENOSPC: "the grid's disk is full; try again later",
    errno.EDQUOT: "the grid's disk is full; try again later",
    errno.EROFS: "the grid's disk can only be read; try again when its owner has looked at it",
    errno.EIO: "the grid's disk fails; try again when its owner has looked at it",
}


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """A full, failing or read-only disk is an UnavailableError; everything else stays what it is.

    >>> with refusals_in_words():
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    memgrid.errors.UnavailableError: the grid's disk is full; try again later
    """
    try:
        yield
    except OSError as error:
        if (words := _WORDS.get(error.errno or 0)) is None:
            raise
        raise UnavailableError(words) from error
