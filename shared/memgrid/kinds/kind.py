"""What the grid must know of a unit kind without computing it: files, forms, and how far two answers may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from memgrid.digest import Digest
from memgrid.kinds.audit import in_words, share_of
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.tolerances import Tolerances
from memgrid.units import ComputeDtype, Output

S_contra = TypeVar("S_contra", contravariant=True)
"""The kind's spec."""
CHECKPOINT_HEADERS_BYTES = 4 << 20
"""What a checkpoint may hold beside its numbers: headers of its parts, the line that names them, its own header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file a unit reads, under its name in the unit's folder."""

    name: str
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What a report brings for comparison."""

    sketch: bytes
    compute_dtype: ComputeDtype
    outputs: tuple[Output, ...] = ()
    """By name and digest; only narrowing a dispute over a training looks at them."""
    numerics_class: str = ""
    """Of the device; within one class float32 gives equal bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two outputs are apart: `distance` relative to what is allowed, 1 at the limit.

    `exceeded` names the statistic that went over, for people; None when the two agree. `part` is where they differ,
    as far as the reports tell it.
    """

    distance: float
    exceeded: str | None
    part: Part | None = None


def difference(found: Mapping[str, float], limits: Mapping[str, float]) -> Difference:
    """What statistics and their limits come to.

    >>> difference({"K median": 0.01, "V median": 0.05}, {"K median": 0.02, "V median": 0.02})
    Difference(distance=2.5, exceeded='V median 5.0e-02, allowed 2.0e-02', part=None)
    """
    shares = {name: share_of(value, limits[name]) for name, value in found.items()}
    over = [in_words(name, found[name], limits[name]) for name, share in shares.items() if share > 1]
    return Difference(distance=max(shares.values(), default=0.0), exceeded=over[0] if over else None)


def incomparable(error: Exception) -> Difference:
    """Answers that can't be compared differ as far as answers can."""
    return Difference(distance=float("inf"), exceeded=str(error))


class UnitKind(Protocol, Generic[S_contra]):
    """One file a kind implements this, with numpy alone: it runs at the coordinator's door and in its engine.

    Every method that takes what a host sent raises RefusedError with the reason.
    """

    is_audited: bool
    """Whether each accepted answer is replayed in part (`memgrid.distill.audit`), instead of made twice."""

    def inputs(self, spec: S_contra) -> tuple[InputFile, ...]:
        """The files the spec names by digest. (The accepted caches that a chained prefill continues come on top.)"""

    def check_claim(self, spec: S_contra, outputs: Sequence[Output], sketch: bytes, geometry: ModelGeometry) -> None:
        """At the door, before anything is stored: names and sizes of the outputs, and the sketch's form."""

    def wanted(
        self, spec: S_contra, outputs: Sequence[Output], draw: bytes, part: Part | None = None
    ) -> tuple[Output, ...]:
        """Which outputs to fetch from the chosen host; the main output comes first.

        `draw` is 32 secret bytes that exist only after the report: what follows from it can't have been foreseen.
        A disputed `part` is replayed instead of what the draw picks.
        """

    def compare(
        self, spec: S_contra, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Difference:
        """How two answers differ by their sketches, set against what is tolerated between their dtypes."""

    def narrow(
        self, spec: S_contra, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Part | None:
        """Where two answers differ: the first piece, of those that build on one another, else all that do.

        None when the reports alone do not tell.
        """

    def check_files(
        self,
        spec: S_contra,
        files: Mapping[str, Path],
        inputs: Mapping[str, Path],
        sketch: bytes,
        geometry: ModelGeometry,
    ) -> None:
        """Whether the fetched files have the form asked for and yield the reported sketch."""

    def flops(self, spec: S_contra, geometry: ModelGeometry) -> int:
        """What the unit costs by its definition alone: the same on every device. It is also the credit."""

    def checkpoint_bytes_max(self, spec: S_contra, geometry: ModelGeometry) -> int:
        """More than is ever committed of a unit that is not done, packed."""
