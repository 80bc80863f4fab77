"""Which pieces of a cache are computed again, and what that costs.

Layer 0 is checked on every token: it depends on the token and its position alone. Of the other layers a few windows
are, each over the claimed cache before it. Many narrow windows see more than a wide one at the same cost: if a share
x of the windows' places is false, c of them miss it with probability (1 - x)^c.
"""

from __future__ import annotations

from collections.abc import Sequence

from memgrid.kinds.draws import sample
from memgrid.kinds.prefill import ModelGeometry, flops
from memgrid.specs import PrefillSpec

WINDOW_TOKENS = 4
WINDOWS_MIN = 4
"""Also for the shortest units, for which auditing then costs more than a twentieth."""
WINDOWS_MAX = 32
_SHARE = 64
"""One token in so many is in a window: with layer 0, and what is read of weights and claims, about a twentieth of
the work from a thousand tokens on (`scripts/bench check_cost`).
"""


def drawn_windows(spec: PrefillSpec, draw: bytes) -> tuple[range, ...]:
    """The unit's tokens that are computed again, in order: its first ones, and others by the draw.

    The first window sees what a claimed past hides: where there is none before it, nothing but the model decides.

    >>> from memgrid.digest import digest_of
    >>> from memgrid.units import ComputeDtype, StoreDtype
    >>> spec = PrefillSpec(model=digest_of(b"m"), tokens=digest_of(b"t"), token_count=512, start=0, parent=None,
    ...     compute_dtype=ComputeDtype.AUTO, store_dtype=StoreDtype.BFLOAT16)
    >>> drawn_windows(spec, bytes(32))
    (range(0, 4), range(200, 204), range(256, 260), range(408, 412))
    """
    places = -(-spec.token_count // WINDOW_TOKENS)
    count = min(WINDOWS_MAX, max(WINDOWS_MIN, spec.token_count // (_SHARE * WINDOW_TOKENS)))
    others = sample(draw, "prefill window", range(1, places), count - 1)
    return tuple(
        range(place * WINDOW_TOKENS, min(spec.token_count, (place + 1) * WINDOW_TOKENS)) for place in (0, *others)
    )


def replay_flops(spec: PrefillSpec, geometry: ModelGeometry, windows: Sequence[range]) -> int:
    """Of layer 0's queries, keys and values for all tokens, and of the windows; counted as units are."""
    heads = geometry.heads + 2 * geometry.kv_heads
    projections = 2 * spec.token_count * geometry.hidden * heads * geometry.head_dim
    return projections + sum(flops(geometry, len(window), spec.start + window.start) for window in windows)
