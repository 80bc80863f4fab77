"""How far two honest KV caches may lie apart, by what they were computed in, and the data behind it.

Measured on SmolLM2-135M-Instruct, English text, chunks of 1 to 512 tokens at positions 0 to 500, as sketches see it
(largest honest value; smallest of int8 weights; both over all chunks of 128 tokens and more):

    stored in bfloat16             K median  V median  K layer  V layer  K layer 0  V layer 0  K block  V block
    fp32: chunks of 17 or 64, eager
      attention, threads, SSE, AVX2 3.6e-5    6.2e-5   1.5e-4   1.4e-4   6.1e-5     6.1e-6     5.5e-4   4.1e-4
    fp16 against fp32               2.2e-3    3.3e-3   3.0e-3   5.4e-3   1.7e-3     1.9e-3     5.5e-3   1.7e-2
    bf16 against fp32, fp16, bf16   1.0e-2    2.0e-2   2.0e-2   4.2e-2   4.1e-3     3.2e-3     5.3e-2   1.5e-1
    int8 weights against fp32       1.4e-2    3.3e-2   2.2e-2   4.8e-2   3.1e-3     8.3e-3     3.0e-2   6.8e-2
    int8 weights against bf16       1.7e-2    3.7e-2   2.7e-2   5.3e-2   3.4e-3     9.3e-3     3.9e-2   8.0e-2
    one token of 256 changed        1.1e-2    3.3e-2   4.2e-2   8.8e-2   1.5e-2     3.4e-2     1.7e-1   3.1e-1

    fp32 stored in fp16             1.3e-5    2.0e-5   2.8e-5   3.7e-5   0          2e-7       8.3e-5   1.1e-4
    fp32 stored in fp32             6e-7      1.2e-6   9e-7     1.7e-6   1.9e-7     2.6e-7     1.5e-6   2.6e-6
    fp16 stored in fp16             1.2e-3    2.5e-3   2.5e-3   4.8e-3   5.0e-4     4.4e-4     5.2e-3   1.6e-2

Rounding to the store dtype widens tiny differences: numbers near the edge of a rounding step fall on either side.
In bf16, V of layer 0 and the median tell int8 weights apart; the worst layer and block are there for what the median
can't see (a skipped layer shows 1.6 in a block, RoPE off by one 0.15 in K). Starting values: recalibrate per model.
"""

from __future__ import annotations

from dataclasses import fields
from math import sqrt

from memgrid.errors import InvalidError
from memgrid.kinds.sketch import BLOCK_TOKENS, Distances
from memgrid.units import ComputeDtype, StoreDtype

_F32, _F16, _B16 = ComputeDtype.FLOAT32, ComputeDtype.FLOAT16, ComputeDtype.BFLOAT16


def _row(
    k_median: float,
    v_median: float,
    k_layer: float,
    v_layer: float,
    k_0: float,
    v_0: float,
    k_block: float,
    v_block: float,
) -> Distances:
    return Distances(
        k_median=k_median,
        v_median=v_median,
        k_worst_layer=k_layer,
        v_worst_layer=v_layer,
        k_layer0=k_0,
        v_layer0=v_0,
        k_worst_block=k_block,
        v_worst_block=v_block,
    )


# Columns as in the table above; for long chunks, `limits` widens them for short ones.
_FLOAT32 = {
    StoreDtype.BFLOAT16: _row(2.0e-4, 2.4e-4, 6e-4, 6e-4, 2e-4, 2e-4, 2.0e-3, 2.0e-3),
    StoreDtype.FLOAT16: _row(1.0e-4, 1.2e-4, 2e-4, 2e-4, 1e-4, 1e-4, 6e-4, 6e-4),
    StoreDtype.FLOAT32: _row(5e-5, 5e-5, 1e-4, 1e-4, 5e-5, 5e-5, 2e-4, 2e-4),
}
_FLOAT16 = {
    StoreDtype.BFLOAT16: _row(3.2e-3, 4.8e-3, 6e-3, 1.0e-2, 3.0e-3, 3.0e-3, 2.0e-2, 5e-2),
    StoreDtype.FLOAT16: _row(1.8e-3, 4.0e-3, 5e-3, 9e-3, 1.0e-3, 1.0e-3, 2.0e-2, 5e-2),
    StoreDtype.FLOAT32: _row(1.8e-3, 4.0e-3, 5e-3, 9e-3, 1.0e-3, 1.0e-3, 2.0e-2, 5e-2),
}
_BFLOAT16 = {
    store: _row(1.15e-2, 2.3e-2, 3.0e-2, 6.0e-2, 5.0e-3, 4.2e-3, 1.2e-1, 3.0e-1) for store in StoreDtype
}  # fmt: skip
_BY_PAIR = {
    frozenset({_F32}): _FLOAT32,
    frozenset({_F32, _F16}): _FLOAT16,
    frozenset({_F16}): _FLOAT16,
    frozenset({_F32, _B16}): _BFLOAT16,
    frozenset({_F16, _B16}): _BFLOAT16,
    frozenset({_B16}): _BFLOAT16,
}


def limits(a: ComputeDtype, b: ComputeDtype, store_dtype: StoreDtype, tokens: int) -> Distances:
    """The largest honest distances of a cache computed in `a` from one computed in `b`, stored alike.

    With few blocks an estimate scatters more, and one bad block is a large part of its layer: short chunks get
    wider limits, twice the table's at 16 tokens and 1.25 times at 256.

    >>> f"{limits(ComputeDtype.FLOAT32, ComputeDtype.FLOAT32, StoreDtype.BFLOAT16, 256).v_median:.1e}"
    '3.0e-04'
    """
    rows = _BY_PAIR.get(frozenset({a, b}))
    if rows is None:
        raise InvalidError(f"no tolerance for {a} against {b}: a report names the dtype it was computed in")
    row = rows[store_dtype]
    spread = 1 / sqrt(max(1, -(-tokens // BLOCK_TOKENS)))
    return Distances(
        k_median=row.k_median * (1 + spread),
        v_median=row.v_median * (1 + spread),
        k_worst_layer=max(row.k_worst_layer * (1 + spread), row.k_worst_block * spread),
        v_worst_layer=max(row.v_worst_layer * (1 + spread), row.v_worst_block * spread),
        k_layer0=row.k_layer0 * (1 + spread),
        v_layer0=row.v_layer0 * (1 + spread),
        k_worst_block=row.k_worst_block,
        v_worst_block=row.v_worst_block,
    )


def exceeded(found: Distances, allowed: Distances) -> str | None:
    """The first statistic above its limit, as people read it; None when all hold.

    >>> exceeded(_BFLOAT16[StoreDtype.BFLOAT16], _FLOAT32[StoreDtype.BFLOAT16])
    'K median 1.1e-02, allowed 2.0e-04'
    """
    for field in fields(Distances):
        value, limit = getattr(found, field.name), getattr(allowed, field.name)
        # Written so that NaN fails too.
        if not value <= limit:
            half, _, statistic = field.name.partition("_")
            return f"{half.upper()} {statistic.replace('_', ' ')} {value:.1e}, allowed {limit:.1e}"
    return None
