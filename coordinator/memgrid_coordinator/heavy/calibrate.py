"""The parts of a calibration that run on the engine; torch stays in its processes."""

from __future__ import annotations

from pathlib import Path

from memgrid_coordinator.heavy.calibration.orders import CacheOrder, CachesMade, CompareOrder
from memgrid_coordinator.heavy.calibration.planning import Begun, Sizes
from memgrid_coordinator.policy.calibrating import Samples


def begin(folder: Path, text: Path | None, sizes: Sizes, seed: int) -> Begun:
    """Read the model's identity and the text; raises InvalidError for what can't be calibrated."""
    from memgrid_coordinator.heavy.calibration.planning import read_model

    return read_model(folder, text, sizes, seed)


def compute_caches(order: CacheOrder) -> CachesMade:
    """Caches of some chunks in one way, kept as sketches."""
    from memgrid_coordinator.heavy.calibration.caches import make_caches

    return make_caches(order)


def compare_sketches(order: CompareOrder) -> list[Samples]:
    """What the kept sketches of some chunks show."""
    from memgrid_coordinator.heavy.calibration.comparing import compare

    return compare(order)
