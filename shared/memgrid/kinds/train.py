"""The train kind as the grid sees it: the files a unit hands in, their form, and which of them to fetch.

Outputs, in this order: `state.safetensors` (the unit's result), `trace.json`, and the committed states on the way,
`state-0001.safetensors` up to one less than there are segments. The sketch stands for the result's difference to
the state the unit began with. In a round the unit begins and ends with parameters alone; what is committed between
is whole, for a replay of a later segment begins there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from memgrid.errors import InvalidError
from memgrid.kinds.delta_sketch import (
    DeltaSketch,
    differences,
    is_recomputed,
    parse_delta_sketch,
    sketch_states,
)
from memgrid.kinds.frame import FRAME_FILE
from memgrid.kinds.kind import CHECKPOINT_HEADERS_BYTES, Difference, InputFile, Replica, difference, incomparable
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import ModelGeometry, flops
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.state_file import check_state, group_count, state_bytes_max
from memgrid.kinds.tolerances import Tolerances
from memgrid.kinds.trace import TRACE_FILE, read_trace, trace_bytes_max
from memgrid.kinds.train_limits import pair_limits
from memgrid.specs import TrainSpec
from memgrid.units import ComputeDtype, Output, ReasonCode

STATE_FILE = "state.safetensors"
_ANSWER_SHARE = 0.5
"""Of a row's tokens, those that the output head is needed for: about so many are answers."""


class TrainKind:
    """Implements `memgrid.kinds.kind.UnitKind`."""

    is_audited = True

    def inputs(self, spec: TrainSpec) -> tuple[InputFile, ...]:
        return (
            InputFile(name=FRAME_FILE, digest=spec.frame),
            InputFile(name=STATE_FILE, digest=spec.state),
            *(InputFile(name=shard_name(number), digest=digest) for number, digest in enumerate(spec.shards)),
            *(
                InputFile(name=distractor_name(number), digest=digest)
                for number, digest in enumerate(spec.distractors)
            ),
        )

    def check_claim(self, spec: TrainSpec, outputs: Sequence[Output], sketch: bytes, geometry: ModelGeometry) -> None:
        expected = output_names(spec)
        found = [output.name for output in outputs]
        if found != expected:
            raise RefusedError(
                ReasonCode.WRONG_OUTPUTS, f"expected {len(expected)} files from {expected[0]} to {expected[-1]}"
            )
        for output in outputs:
            limit = output_bytes_max(spec, output.name, geometry)
            if output.size_bytes > limit:
                raise RefusedError(
                    ReasonCode.WRONG_OUTPUTS, f"{output.name}: {output.size_bytes} bytes, at most {limit} expected"
                )
        parse_delta_sketch(sketch, group_count(spec.adapter, geometry))

    def wanted(
        self, spec: TrainSpec, outputs: Sequence[Output], draw: bytes, part: Part | None = None
    ) -> tuple[Output, ...]:
        """The result, the trace, and both ends of the segment to replay."""
        segment = drawn_segment(spec, draw) if part is None else part.pieces[0]
        names = {STATE_FILE, TRACE_FILE, *segment_files(spec, segment)}
        return tuple(output for output in outputs if output.name in names)

    def compare(
        self, spec: TrainSpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Difference:
        dtypes = (one.compute_dtype, other.compute_dtype)
        try:
            groups = group_count(spec.adapter, geometry)
            first, second = (parse_delta_sketch(each.sketch, groups) for each in (one, other))
            limits = pair_limits(tolerances, *dtypes, spec.first_step - spec.cold_step)
        except InvalidError as error:
            return incomparable(error)
        return difference(differences(first, second), limits)

    def narrow(
        self, spec: TrainSpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Part | None:
        """The first segment after which committed states differ, by their digests.

        None unless both computed in float32 on devices of one numerics class, where equal steps give equal bits:
        between others the digests part at once, whoever is right.
        """
        classes = {one.numerics_class, other.numerics_class}
        if {one.compute_dtype, other.compute_dtype} != {ComputeDtype.FLOAT32} or len(classes) > 1 or "" in classes:
            return None
        digests = [{output.name: output.digest for output in replica.outputs} for replica in (one, other)]
        for segment in range(spec.segments):
            name = segment_files(spec, segment)[-1]
            if name not in digests[0] or name not in digests[1]:
                return None
            if digests[0][name] != digests[1][name]:
                return Part(pieces=(segment,))
        return None

    def check_files(
        self,
        spec: TrainSpec,
        files: Mapping[str, Path],
        inputs: Mapping[str, Path],
        sketch: bytes,
        geometry: ModelGeometry,
    ) -> None:
        """Form, steps, finite numbers, an untouched sink, and that result and start yield the reported sketch."""
        start = inputs[STATE_FILE]
        for name, path in files.items():
            if name == TRACE_FILE:
                _check_trace(path, spec)
            else:
                check_state(
                    path,
                    spec.adapter,
                    start,
                    step=committed_step(spec, name),
                    moments=has_moments(spec, name),
                    geometry=geometry,
                )
        reported = parse_delta_sketch(sketch, group_count(spec.adapter, geometry))
        made: DeltaSketch = sketch_states(start, files[STATE_FILE], spec.adapter, geometry, spec.key)
        if not is_recomputed(reported, made):
            raise RefusedError(ReasonCode.SKETCH_MISMATCH, "the uploaded states do not have the reported sketch")

    def flops(self, spec: TrainSpec, geometry: ModelGeometry) -> int:
        return train_flops(spec, geometry, spec.stop_step - spec.first_step)

    def checkpoint_bytes_max(self, spec: TrainSpec, geometry: ModelGeometry) -> int:
        """All outputs, and of the step in between the state, the gradient, losses and the trace up to it."""
        outputs = sum(output_bytes_max(spec, name, geometry) for name in output_names(spec))
        whole = state_bytes_max(spec.adapter, geometry, moments=True)
        losses = 4 * spec.batch_rows * spec.row_tokens
        return outputs + 2 * whole + losses + trace_bytes_max(spec) + CHECKPOINT_HEADERS_BYTES


def train_flops(spec: TrainSpec, geometry: ModelGeometry, steps: int) -> int:
    """Forward and backward through a frozen model over whole rows; the backward pass needs no gradient of weights."""
    rows = steps * spec.batch_rows
    body = flops(geometry, spec.row_tokens, spec.adapter.virtual_tokens)
    head = int(2 * geometry.vocab * geometry.hidden * spec.row_tokens * _ANSWER_SHARE)
    return 2 * rows * (body + head)


def activation_bytes(spec: TrainSpec, geometry: ModelGeometry, rows: int, number_bytes: int = 4) -> int:
    """What the backward pass of so many rows at once keeps in memory, beside the model, in models like Llama.

    A frozen layer keeps, for each token, its two norms' inputs, queries, keys, values and attention's output, and
    three numbers for each of the feed-forward's; with LoRA also what its matrices read. Added to that come the
    mask and angles, once, and pieces of logits (`memgrid.distill.loss.LOGITS_BYTES_MAX`, three times).

    >>> from memgrid.specs import AdapterKind, AdapterSpec
    >>> smol = ModelGeometry(layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152,
    ...     parameters=134515008, tied_embeddings=True)
    >>> attention_width(smol), feed_forward_width(smol)
    (576, 1536)
    """
    past, width, wide = spec.adapter.virtual_tokens, attention_width(geometry), feed_forward_width(geometry)
    a_token = 2 * geometry.hidden + 4 * width + 3 * wide + 2 * geometry.heads + 8
    read = {"down_proj": wide, "o_proj": width}
    a_token += sum(read.get(target, geometry.hidden) + 2 * spec.adapter.rank for target in spec.adapter.targets)
    a_row = geometry.layers * (spec.row_tokens * a_token + 4 * past * width)
    return rows * number_bytes * (a_row + spec.row_tokens * (past + spec.row_tokens + 2 * geometry.head_dim))


def attention_width(geometry: ModelGeometry) -> int:
    return geometry.heads * geometry.head_dim


def feed_forward_width(geometry: ModelGeometry) -> int:
    """Of gated feed-forwards, by what attention leaves of a layer's weights."""
    a_layer = geometry.matmul_parameters // geometry.layers
    attention = geometry.hidden * geometry.head_dim * 2 * (geometry.heads + geometry.kv_heads)
    return (a_layer - attention) // (3 * geometry.hidden)


def shard_name(number: int) -> str:
    return f"shards/{number:04d}.safetensors"


def distractor_name(number: int) -> str:
    return f"distractors/{number:04d}.safetensors"


def committed_name(number: int) -> str:
    """The file of the state after so many segments; the last one's is the unit's result instead.

    >>> committed_name(3)
    'state-0003.safetensors'
    """
    return f"state-{number:04d}.safetensors"


def output_names(spec: TrainSpec) -> list[str]:
    """The unit's outputs in order."""
    return [STATE_FILE, TRACE_FILE, *(committed_name(number) for number in range(1, spec.segments))]


def committed_step(spec: TrainSpec, name: str) -> int:
    """How many steps are done in the state of that file."""
    if name == STATE_FILE:
        return spec.stop_step
    return spec.first_step + (output_names(spec).index(name) - 1) * spec.segment_steps


def has_moments(spec: TrainSpec, name: str) -> bool:
    """Whether Adam's moments are in that file of the unit: in a round neither its start nor its result has any."""
    return not (spec.round and name == STATE_FILE)


def output_bytes_max(spec: TrainSpec, name: str, geometry: ModelGeometry) -> int:
    """More than that output may take."""
    if name == TRACE_FILE:
        return trace_bytes_max(spec)
    return state_bytes_max(spec.adapter, geometry, moments=has_moments(spec, name))


def drawn_segment(spec: TrainSpec, draw: bytes) -> int:
    """Which segment to replay; the last one is twice as likely as any other, for what is added there stays."""
    return last_twice(spec.segments, draw)


def last_twice(count: int, draw: bytes) -> int:
    """One of `count` by a draw, the last with twice the probability of each other.

    >>> [last_twice(4, bytes([value])) for value in range(6)]
    [0, 1, 2, 3, 3, 0]
    """
    return min(int.from_bytes(draw, "little") % (count + 1), count - 1)


def segment_files(spec: TrainSpec, segment: int) -> list[str]:
    """The outputs at both ends of a segment; the first one begins with an input instead."""
    ends = [committed_name(segment)] if segment else []
    return [*ends, STATE_FILE if segment == spec.segments - 1 else committed_name(segment + 1)]


def _check_trace(path: Path, spec: TrainSpec) -> None:
    try:
        trace = read_trace(path.read_bytes())
    except InvalidError as error:
        raise RefusedError(ReasonCode.WRONG_SHAPE, str(error)) from None
    if [entry.step for entry in trace] != list(range(spec.first_step, spec.stop_step)):
        raise RefusedError(
            ReasonCode.WRONG_OUTPUTS, f"{TRACE_FILE}: expected steps {spec.first_step} to {spec.stop_step - 1}"
        )
