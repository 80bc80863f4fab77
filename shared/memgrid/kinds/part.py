"""The piece of a unit's answer over which two hosts differ, so that an arbiter computes only that again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`pieces` are counted as the kind counts: tokens of a cache, segments of a training, conversations, items.

    `layer` is the earliest layer of a cache that differs there; what comes before it agrees.
    """

    pieces: tuple[int, ...]
    layer: int = 0


def first_parting(count: int, is_apart: Callable[[int], bool]) -> int:
    """Which of `count` steps is the first after which two chains are apart, asked as seldom as can be.

    What parted stays apart: each step begins where the former one ended. The last one is known to be apart. Asks
    log2 of the count, for each answer may take files that have to be fetched first.

    >>> asked = []
    >>> first_parting(16, lambda step: (asked.append(step), step >= 11)[1]), asked
    (11, [7, 11, 9, 10])
    """
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if is_apart(middle):
            high = middle
        else:
            low = middle + 1
    return low
