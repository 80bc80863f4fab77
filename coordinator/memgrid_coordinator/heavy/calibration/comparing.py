"""Compare kept sketches of the same chunks: honest ones with each other, cheats with honest ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from memgrid.kinds.built_in_rows import SKETCH_STATISTICS
from memgrid.kinds.prefill_limits import sketch_limits
from memgrid.kinds.sketch import Sketch, distances
from memgrid.kinds.tolerances import row_key
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_coordinator.heavy.calibration.chunks import Chunk
from memgrid_coordinator.heavy.calibration.kept_sketches import kept_sketch
from memgrid_coordinator.heavy.calibration.orders import CompareOrder
from memgrid_coordinator.heavy.calibration.probing import UNIT_LIMITS
from memgrid_coordinator.heavy.calibration.ways import FINER_FIRST, SAYS_FINER, TF32, claims_of
from memgrid_coordinator.policy.calibrating import HONEST, Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reported:
    """A sketch as its host would report it."""

    sketch: Sketch
    way: str
    claims: ComputeDtype
    cheat: str


def compare(order: CompareOrder) -> list[Samples]:
    """All statistics of all pairs; pairs of one row and the same ways are together."""
    found: dict[tuple[str, str, str], list[tuple[int, tuple[float, ...]]]] = {}
    for chunk in order.chunks:
        for store in order.stores:
            reported = list(_reported(order, chunk, store))
            for one, other in _pairs(reported):
                row = row_key("prefill.sketch", one.claims, other.claims, store)
                width = sketch_limits(UNIT_LIMITS, one.claims, other.claims, store, one.sketch.k.shape[1])
                apart = distances(one.sketch, other.sketch)
                values = tuple(apart[name] / width[name] for name in SKETCH_STATISTICS)
                ways = f"{one.way} | {other.way}" if one.cheat == HONEST else one.way
                found.setdefault((row, one.cheat, ways), []).append((chunk.index, values))
    return [
        Samples(
            row=row,
            cheat=cheat,
            ways=ways,
            names=SKETCH_STATISTICS,
            values=np.array([values for _, values in listed]),
            pieces=np.array([piece for piece, _ in listed]),
        )
        for (row, cheat, ways), listed in found.items()
    ]


def _reported(order: CompareOrder, chunk: Chunk, store: StoreDtype) -> Iterator[_Reported]:
    for kept in order.kept:
        if chunk.index not in kept.indices:
            continue
        sketch = kept_sketch(kept.file, chunk, store, order.geometry)
        if sketch is None:
            continue
        computed = kept.way.compute_dtype
        if kept.way == TF32:
            yield _Reported(sketch=sketch, way=kept.way.name, claims=computed, cheat=SAYS_FINER)
        elif kept.cheat == HONEST:
            yield _Reported(sketch=sketch, way=kept.way.name, claims=computed, cheat=HONEST)
            for finer in FINER_FIRST[: FINER_FIRST.index(computed)]:
                yield _Reported(sketch=sketch, way=kept.way.name, claims=finer, cheat=SAYS_FINER)
        else:
            for claim in claims_of(computed):
                yield _Reported(sketch=sketch, way=kept.way.name, claims=claim, cheat=kept.cheat)


def _pairs(reported: Sequence[_Reported]) -> Iterator[tuple[_Reported, _Reported]]:
    """Every two honest ones, and every cheat with every honest one."""
    honest = [each for each in reported if each.cheat == HONEST]
    yield from combinations(honest, 2)
    for each in reported:
        if each.cheat != HONEST:
            # A coarser answer that says it is fine is not compared with one that says it is coarse: that is allowed.
            yield from ((each, other) for other in honest if each.cheat != SAYS_FINER or _is_told(each, other))


def _is_told(lie: _Reported, other: _Reported) -> bool:
    return FINER_FIRST.index(other.claims) <= FINER_FIRST.index(lie.claims)
