"""How far two honest KV caches may lie apart, by what they were computed in, and the data behind it."""

from __future__ import annotations

from dataclasses import fields

from memgrid.errors import InvalidError
from memgrid.kinds.sketch import Distances
from memgrid.units import ComputeDtype, StoreDtype

_FLOAT32 = Distances(
    k_median=1.5e-4,
    v_median=1.5e-4,
    k_worst_layer=3e-4,
    v_worst_layer=3e-4,
    k_layer0=1e-4,
    v_layer0=1e-4,
    k_worst_block=1e-3,
    v_worst_block=1e-3,
)
_FLOAT16 = Distances(
    k_median=1.8e-3,
    v_median=4e-3,
    k_worst_layer=2.6e-3,
    v_worst_layer=5e-3,
    k_layer0=1e-3,
    v_layer0=1e-3,
    k_worst_block=8e-3,
    v_worst_block=1.2e-2,
)
_BFLOAT16 = Distances(
    k_median=1.25e-2,
    v_median=2.6e-2,
    k_worst_layer=2.2e-2,
    v_worst_layer=4.2e-2,
    k_layer0=6e-3,
    v_layer0=6e-3,
    k_worst_block=5e-2,
    v_worst_block=8e-2,
)

_F32, _F16, _B16 = ComputeDtype.FLOAT32, ComputeDtype.FLOAT16, ComputeDtype.BFLOAT16
_BY_PAIR = {
    frozenset({_F32}): _FLOAT32,
    frozenset({_F32, _F16}): _FLOAT16,
    frozenset({_F16}): _FLOAT16,
    frozenset({_F32, _B16}): _BFLOAT16,
    frozenset({_F16, _B16}): _BFLOAT16,
    frozenset({_B16}): _BFLOAT16,
}


def limits(a: ComputeDtype, b: ComputeDtype, store_dtype: StoreDtype) -> Distances:
    """The largest honest distances of a cache computed in `a` from one computed in `b`, stored alike.

    >>> limits(ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16, StoreDtype.BFLOAT16).v_median
    0.026
    """
    pair = _BY_PAIR.get(frozenset({a, b}))
    if pair is None:
        raise InvalidError(f"no tolerance is known for {a} against {b}: a report names the dtype it was computed in")
    return pair


def exceeded(found: Distances, allowed: Distances) -> str | None:
    """The first statistic above its limit, as people read it; None when all hold.

    >>> exceeded(_BFLOAT16, _FLOAT32)
    'K median 1.3e-02, allowed 1.5e-04'
    """
    for field in fields(Distances):
        value, limit = getattr(found, field.name), getattr(allowed, field.name)
        # Written so that NaN fails too.
        if not value <= limit:
            half, _, statistic = field.name.partition("_")
            return f"{half.upper()} {statistic.replace('_', ' ')} {value:.1e}, allowed {limit:.1e}"
    return None
