"""What the engine is asked to do for a calibration: plain values, whose large parts are files in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memgrid.digest import Digest
from memgrid.kinds.prefill import ModelGeometry
from memgrid.units import StoreDtype
from memgrid_coordinator.heavy.calibration.chunks import Chunk
from memgrid_coordinator.heavy.calibration.planning import Sizes
from memgrid_coordinator.heavy.calibration.ways import Way
from memgrid_coordinator.policy.calibrating import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOrder:
    """Some chunks to compute in one way; `cheat` names what is done wrong, and is empty when nothing is."""

    model_folder: Path
    way: Way
    cheat: str
    chunks: tuple[Chunk, ...]
    texts: tuple[tuple[int, ...], ...]
    """What a cheat trains on."""
    stores: tuple[StoreDtype, ...]
    audited: frozenset[int]
    """The chunks of whose wrong caches pieces are computed again, too; of the right ones they always are."""
    audit_store: StoreDtype
    folder: Path
    """Sketches go here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachesMade:
    """Files of sketches by cheat ("" for the honest), what replays showed, and how far a cheat's weights moved."""

    files: dict[str, Path]
    samples: tuple[Samples, ...]
    moved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonOrder:
    """A unit of a small distillation in one way; `number` tells its files from those of other ways."""

    model_folder: Path
    model: Digest
    folder: Path
    text: Path | None
    seed: int
    sizes: Sizes
    way: Way
    cheat: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A file of sketches, how they came about and what was wrong; `cheat` is empty when nothing was."""

    file: Path
    way: Way
    cheat: str
    indices: frozenset[int]
    """The chunks in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOrder:
    """Sketches of some chunks in all ways."""

    kept: tuple[Kept, ...]
    chunks: tuple[Chunk, ...]
    stores: tuple[StoreDtype, ...]
    geometry: ModelGeometry
