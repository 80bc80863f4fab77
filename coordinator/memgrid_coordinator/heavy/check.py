"""Compare the reports on a unit by their sketches, and check an upload against what was reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

from memgrid.digest import token_ids
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry, check_kv_file
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.sketch import Distances, distances, is_recomputed, parse_sketch, sketch_file
from memgrid.kinds.tolerances import exceeded, limits
from memgrid.specs import PrefillSpec, unit_key_of
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.policy.quorum import Difference, Pair
from memgrid_coordinator.records import ReplicaClaim


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The reports on one unit, and what is needed to compare them; `spec` is the unit's canonical spec."""

    claims: tuple[ReplicaClaim, ...]
    layers: int
    spec: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedOutput:
    """A file that came from a host, and what it has to be; `tokens` is the file of the unit's token ids."""

    path: Path
    spec: bytes
    tokens: Path
    sketch: bytes
    geometry: ModelGeometry


def compare_all(comparisons: Sequence[Comparison]) -> list[dict[Pair, Difference]]:
    """`compare` for many units in one call."""
    return [compare(one.claims, one.layers, PrefillSpec.from_bytes(one.spec)) for one in comparisons]


def check_outputs(uploaded: Sequence[UploadedOutput]) -> list[Reason | None]:
    """`check_output` for many files in one call."""
    return [
        check_output(one.path, one.spec, token_ids(one.tokens.read_bytes()), one.sketch, one.geometry)
        for one in uploaded
    ]


def compare(claims: Sequence[ReplicaClaim], layers: int, spec: PrefillSpec) -> dict[Pair, Difference]:
    """How any two reports on a unit differ; pairs of equal outputs are left out, because there is nothing to compare.

    A report that can't be compared (its sketch is none, its dtype unknown) differs from every other.
    """
    return {
        frozenset((one.lease_id, other.lease_id)): _difference(one, other, layers, spec)
        for one, other in combinations(claims, 2)
        if one.output_digest != other.output_digest
    }


def check_output(
    path: Path, spec: bytes, token_ids: Sequence[int], sketch: bytes, geometry: ModelGeometry
) -> Reason | None:
    """Why an uploaded `kv.safetensors` is not the reported answer to the unit of `spec`; None when it is.

    Its form, its tokens, that every number is finite, and that it yields the reported sketch: so the bytes that
    are kept are the ones whose agreement with the other replicas was judged.
    """
    unit = PrefillSpec.from_bytes(spec)
    try:
        check_kv_file(path, unit, token_ids, geometry)
        reported = parse_sketch(sketch, geometry.layers, unit.token_count)
    except RefusedError as error:
        return error.reason
    made = sketch_file(path, unit_key_of(spec))
    if not is_recomputed(reported, parse_sketch(made, geometry.layers, unit.token_count)):
        return Reason(code=ReasonCode.SKETCH_MISMATCH, text="the uploaded cache does not have the reported sketch")
    return None


def _difference(one: ReplicaClaim, other: ReplicaClaim, layers: int, spec: PrefillSpec) -> Difference:
    try:
        allowed = limits(one.compute_dtype, other.compute_dtype, spec.store_dtype, spec.token_count)
        found = distances(
            parse_sketch(one.sketch, layers, spec.token_count), parse_sketch(other.sketch, layers, spec.token_count)
        )
    except InvalidError as error:
        return Difference(distance=float("inf"), exceeded=str(error))
    return Difference(distance=_share(found, allowed), exceeded=exceeded(found, allowed))


def _share(found: Distances, allowed: Distances) -> float:
    """The largest of the statistics, as a multiple of what is allowed."""
    names = [field.name for field in fields(Distances)]
    return max(float(getattr(found, name)) / float(getattr(allowed, name)) for name in names)
