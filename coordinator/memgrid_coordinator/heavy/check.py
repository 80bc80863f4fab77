"""Compare the reports on a unit by their sketches, and check uploads against what was reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isfinite
from pathlib import Path

from memgrid.kinds.kind import Difference, Replica
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.registry import kind_of
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import parse_spec
from memgrid.units import Reason
from memgrid_coordinator.policy.quorum import Pair
from memgrid_coordinator.records import ReplicaClaim


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The reports on one unit, and what is needed to compare them; `spec` is the unit's canonical spec."""

    claims: tuple[ReplicaClaim, ...]
    spec: bytes
    geometry: ModelGeometry
    tolerances: Tolerances
    is_narrowed: bool = False
    """Whether to say of two that differ where they do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedOutput:
    """Files that came from a host, the unit's inputs, and what they have to be; both by the unit's own names."""

    spec: bytes
    files: Mapping[str, Path]
    inputs: Mapping[str, Path]
    sketch: bytes
    geometry: ModelGeometry


def compare_all(comparisons: Sequence[Comparison]) -> list[dict[Pair, Difference]]:
    """`compare` for many units in one call."""
    return [compare(one) for one in comparisons]


def check_outputs(uploaded: Sequence[UploadedOutput]) -> list[Reason | None]:
    """`check_output` for many uploads in one call."""
    return [check_output(one) for one in uploaded]


def compare(asked: Comparison) -> dict[Pair, Difference]:
    """How any two reports on a unit differ; pairs of equal outputs are left out, because there is nothing to compare.

    A report that can't be compared (its sketch is none, its dtype unknown) differs from every other.
    """
    return {
        frozenset((one.lease_id, other.lease_id)): _difference(asked, _replica(one), _replica(other))
        for one, other in combinations(asked.claims, 2)
        if one.output_digest != other.output_digest
    }


def _difference(asked: Comparison, one: Replica, other: Replica) -> Difference:
    spec = parse_spec(asked.spec)
    kind, against = kind_of(spec), (asked.geometry, asked.tolerances)
    found = kind.compare(spec, one, other, *against)
    if not asked.is_narrowed or found.exceeded is None or not isfinite(found.distance):
        return found
    return replace(found, part=kind.narrow(spec, one, other, *against))


def check_output(uploaded: UploadedOutput) -> Reason | None:
    """Why uploaded files are not the reported answer to their unit; None when they are.

    Their form, and that they yield the reported sketch: so the bytes that are kept are the ones whose agreement
    with the other replicas was judged.
    """
    spec = parse_spec(uploaded.spec)
    try:
        kind_of(spec).check_files(spec, uploaded.files, uploaded.inputs, uploaded.sketch, uploaded.geometry)
    except RefusedError as error:
        return error.reason
    return None


def _replica(claim: ReplicaClaim) -> Replica:
    return Replica(
        sketch=claim.sketch,
        compute_dtype=claim.compute_dtype,
        outputs=claim.outputs,
        numerics_class=claim.numerics_class,
    )
