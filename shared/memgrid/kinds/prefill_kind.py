"""The prefill kind as the grid sees it: caches made twice and compared by sketch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from memgrid.digest import token_ids
from memgrid.errors import InvalidError
from memgrid.kinds.kind import CHECKPOINT_HEADERS_BYTES, Difference, InputFile, Replica, difference, incomparable
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import KV_FILE, ModelGeometry, check_kv_file, flops
from memgrid.kinds.prefill_limits import sketch_limits
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.sketch import (
    SketchForm,
    distances,
    first_difference,
    is_recomputed,
    parse_sketch,
    sketch_file,
    sketch_form,
)
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import PrefillSpec
from memgrid.units import Output, ReasonCode, StoreDtype

TOKENS_FILE = "tokens.bin"
_HEADER_BYTES_MAX = 1 << 20


class PrefillKind:
    """Implements `memgrid.kinds.kind.UnitKind`."""

    is_audited = False

    def inputs(self, spec: PrefillSpec) -> tuple[InputFile, ...]:
        return (InputFile(name=TOKENS_FILE, digest=spec.tokens),)

    def check_claim(
        self, spec: PrefillSpec, outputs: Sequence[Output], sketch: bytes, geometry: ModelGeometry
    ) -> None:
        largest = geometry.kv_bytes(spec.token_count, spec.store_dtype) + 4 * spec.token_count + _HEADER_BYTES_MAX
        if [output.name for output in outputs] != [KV_FILE] or outputs[0].size_bytes > largest:
            raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"expected one {KV_FILE} of at most {largest} bytes")
        parse_sketch(sketch, _form(spec, geometry))

    def wanted(
        self, spec: PrefillSpec, outputs: Sequence[Output], draw: bytes, part: Part | None = None
    ) -> tuple[Output, ...]:
        return tuple(outputs)

    def compare(
        self, spec: PrefillSpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Difference:
        dtypes = (one.compute_dtype, other.compute_dtype)
        try:
            form = _form(spec, geometry)
            allowed = sketch_limits(tolerances, *dtypes, spec.store_dtype, form.blocks)
            found = distances(parse_sketch(one.sketch, form), parse_sketch(other.sketch, form))
        except InvalidError as error:
            return incomparable(error)
        return difference(found, allowed)

    def narrow(
        self, spec: PrefillSpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Part | None:
        """The first block of tokens that differs beyond tolerance, and its earliest layer; else the furthest off."""
        form = _form(spec, geometry)
        row = tolerances.row("prefill.sketch", one.compute_dtype, other.compute_dtype, spec.store_dtype)
        limits = [[row[f"{half} layer 0"], row[f"{half} worst block"]] for half in "KV"]
        first = first_difference(parse_sketch(one.sketch, form), parse_sketch(other.sketch, form), limits)
        if first is None:
            return None
        block, layer = first
        begin = block * form.block_tokens
        return Part(pieces=tuple(range(begin, min(spec.token_count, begin + form.block_tokens))), layer=layer)

    def check_files(
        self,
        spec: PrefillSpec,
        files: Mapping[str, Path],
        inputs: Mapping[str, Path],
        sketch: bytes,
        geometry: ModelGeometry,
    ) -> None:
        """Form, tokens, finite numbers, and that they yield the reported sketch."""
        path = files[KV_FILE]
        check_kv_file(path, spec, token_ids(inputs[TOKENS_FILE].read_bytes()), geometry)
        reported = parse_sketch(sketch, _form(spec, geometry))
        made = parse_sketch(sketch_file(path, spec.key), _form(spec, geometry))
        if not is_recomputed(reported, made):
            raise RefusedError(ReasonCode.SKETCH_MISMATCH, "the uploaded cache does not have the reported sketch")

    def flops(self, spec: PrefillSpec, geometry: ModelGeometry) -> int:
        return flops(geometry, spec.token_count, spec.start)

    def checkpoint_bytes_max(self, spec: PrefillSpec, geometry: ModelGeometry) -> int:
        """Parts are in the dtype that was computed in, float32 at the widest."""
        return geometry.kv_bytes(spec.token_count, StoreDtype.FLOAT32) + CHECKPOINT_HEADERS_BYTES


def _form(spec: PrefillSpec, geometry: ModelGeometry) -> SketchForm:
    return sketch_form(geometry, spec.store_dtype, spec.token_count)
