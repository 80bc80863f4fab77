"""How far two sketches of one cache may lie apart, by what was computed and how many blocks it has."""

from __future__ import annotations

from math import sqrt

from memgrid.kinds.tolerances import Tolerances
from memgrid.units import ComputeDtype, StoreDtype


def sketch_limits(
    tolerances: Tolerances, one: ComputeDtype, other: ComputeDtype, store_dtype: StoreDtype, blocks: int
) -> dict[str, float]:
    """The largest honest `memgrid.kinds.sketch.distances` of caches computed in two dtypes and stored alike.

    With few blocks an estimate scatters more, and one bad block is a large part of its layer: short chunks get
    wider limits, twice the table's with one block and 1.25 times with 16. Raises InvalidError for a dtype of AUTO.

    >>> from memgrid.kinds.tolerances import BUILT_IN
    >>> float32 = ComputeDtype.FLOAT32
    >>> f"{sketch_limits(BUILT_IN, float32, float32, StoreDtype.BFLOAT16, 16)['V median']:.1e}"
    '3.0e-04'
    """
    row = tolerances.row("prefill.sketch", one, other, store_dtype)
    spread = 1 / sqrt(blocks)
    limits = {name: limit if name.endswith("block") else limit * (1 + spread) for name, limit in row.items()}
    for half in "KV":
        layer, block = f"{half} worst layer", f"{half} worst block"
        limits[layer] = max(limits[layer], row[block] * spread)
    return limits
