"""The piece of a unit's answer over which two hosts differ, so that an arbiter computes only that again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`pieces` are counted as the kind counts: tokens of a cache, segments of a training, conversations, items.

    `layer` is the earliest layer of a cache that differs there; what comes before it agrees.
    """

    pieces: tuple[int, ...]
    layer: int = 0
