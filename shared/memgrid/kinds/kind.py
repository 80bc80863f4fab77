"""What the grid must know of a unit kind without computing it: files, forms, and how far two answers may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from memgrid.digest import Digest
from memgrid.kinds.prefill import ModelGeometry
from memgrid.units import ComputeDtype, Output

S_contra = TypeVar("S_contra", contravariant=True)
"""The kind's spec."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two outputs are apart: `distance` relative to what is allowed, 1 at the limit.

    `exceeded` names the statistic that went over, for people; None when the two agree.
    """

    distance: float
    exceeded: str | None


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

    def wanted(self, spec: S_contra, outputs: Sequence[Output], draw: bytes) -> tuple[Output, ...]:
        """Which outputs to fetch from the chosen host; the main output comes first.

        `draw` is 32 secret bytes that exist only after the report: what follows from it can't have been foreseen.
        """

    def compare(self, spec: S_contra, one: Replica, other: Replica, geometry: ModelGeometry) -> Difference:
        """How two answers differ by their sketches."""

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
