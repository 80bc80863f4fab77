"""Choices that follow from a secret draw, in a way that is written down here and nowhere else.

A draw exists only after a report, so nobody can foresee what it picks; and whoever is shown it later, in an appeal,
can repeat every choice: number i for a purpose is HMAC-SHA256(draw, "purpose:i"), read as a little-endian integer.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from itertools import count, islice


def numbers(draw: bytes, purpose: str) -> Iterator[int]:
    """Endless whole numbers of 256 bits."""
    for place in count():
        yield int.from_bytes(hmac.digest(draw, f"{purpose}:{place}".encode(), "sha256"), "little")


def sample(draw: bytes, purpose: str, of: range, size: int) -> tuple[int, ...]:
    """So many different members of a range, each set as likely as any other, in ascending order.

    The first steps of a Fisher-Yates shuffle; remainders of 256 bits have no bias worth naming.

    >>> sample(b"secret", "test", range(10, 100), 3)
    (50, 66, 88)
    """
    size = min(size, len(of))
    moved: dict[int, int] = {}
    picked = []
    for place, number in enumerate(islice(numbers(draw, purpose), size)):
        other = place + number % (len(of) - place)
        picked.append(of[moved.get(other, other)])
        moved[other] = moved.get(place, place)
    return tuple(sorted(picked))
