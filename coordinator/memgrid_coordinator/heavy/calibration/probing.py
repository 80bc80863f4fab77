"""A table of limits that are all one: what a check makes of it is by how much it widens them for a case."""

from __future__ import annotations

from collections.abc import Mapping

from memgrid.kinds.built_in_rows import RANK_EDGE
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.prefill_limits import sketch_limits
from memgrid.kinds.sketch import sketch_form
from memgrid.kinds.tolerances import BUILT_IN, Tolerances
from memgrid.units import ComputeDtype, StoreDtype

UNIT_LIMITS = Tolerances(
    origin="one for all",
    rows={
        # How far ranks may swap decides which tokens count: no limit of a statistic, so it stays as it is.
        key: {name: limit if name == RANK_EDGE else 1.0 for name, limit in row.items()}
        for key, row in BUILT_IN.rows.items()
    },
)


def in_effect(row: str, limits: Mapping[str, float], geometry: ModelGeometry, tokens: int) -> dict[str, float]:
    """What sketches of so many tokens are in effect allowed by a row: its bad blocks widen the limits of layers.

    >>> key = "prefill.sketch/float32+float32/float32"
    >>> given = {**BUILT_IN.rows[key], "K worst block": 1.0}
    >>> smol = ModelGeometry(layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152,
    ...     parameters=134515008, tied_embeddings=True)
    >>> in_effect(key, given, smol, 256)["K worst layer"]
    0.2
    """
    check, _, rest = row.partition("/")
    if check != "prefill.sketch":
        return dict(limits)
    pair, _, store = rest.partition("/")
    coarser, _, finer = pair.partition("+")
    blocks = sketch_form(geometry, StoreDtype(store), tokens).blocks
    compared = (ComputeDtype(coarser), ComputeDtype(finer), StoreDtype(store), blocks)
    widths = sketch_limits(UNIT_LIMITS, *compared)
    allowed = sketch_limits(Tolerances(origin="", rows={row: limits}), *compared)
    return {name: allowed[name] / widths[name] for name in allowed}
