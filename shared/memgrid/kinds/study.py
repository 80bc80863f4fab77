"""What a study unit hands in: a shard of conversations, its sketch, and how far a replay may lie from it.

A replay reads the conversations as written and looks at every token: would the keyed noise have drawn this one, is
this the greedy answer, are these the teacher's log-probabilities. The sketch holds, a conversation, eight bytes of
the digest of its text and the log-likelihood of its answer: enough to compare two hosts, of whom one uploads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.errors import InvalidError
from memgrid.kinds.draws import sample
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.kind import CHECKPOINT_HEADERS_BYTES, Difference, InputFile, Replica, difference, incomparable
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import ModelGeometry, flops
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import SHARD_FILE, Shard, conversation_digests, read_shard
from memgrid.kinds.tensorfile import TensorFile
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import StudySpec
from memgrid.units import Output, ReasonCode

_HEADER_BYTES_MAX = 4096
_SKETCH_HEADER_BYTES_MAX = 1024
_DIGEST_BYTES = 8
_FRAME_TOKENS = 64
"""What the frame adds to a conversation, roughly: seed prompt and template. Part of the price, so it is fixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySketch:
    """`digests` U8 [n, 8] of the texts; `likelihood` F32 [n], the summed log-probabilities of each answer."""

    digests: npt.NDArray[np.uint8]
    likelihood: npt.NDArray[np.float32]


class StudyKind:
    """Implements `memgrid.kinds.kind.UnitKind`."""

    is_audited = True

    def inputs(self, spec: StudySpec) -> tuple[InputFile, ...]:
        return (
            InputFile(name=FRAME_FILE, digest=spec.frame),
            InputFile(name=TOKENS_FILE, digest=spec.tokens),
        )

    def check_claim(self, spec: StudySpec, outputs: Sequence[Output], sketch: bytes, geometry: ModelGeometry) -> None:
        largest = shard_bytes(spec, geometry.vocab) + _HEADER_BYTES_MAX
        if [output.name for output in outputs] != [SHARD_FILE] or outputs[0].size_bytes > largest:
            raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"expected one {SHARD_FILE} of at most {largest} bytes")
        parse_sketch(sketch, spec.conversations)

    def wanted(
        self, spec: StudySpec, outputs: Sequence[Output], draw: bytes, part: Part | None = None
    ) -> tuple[Output, ...]:
        return tuple(outputs)

    def compare(
        self, spec: StudySpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Difference:
        """Equal talk has to be equally likely; how many talks may differ depends on the rounding."""
        try:
            a, b = (parse_sketch(replica.sketch, spec.conversations) for replica in (one, other))
            allowed = tolerances.row("study.sketch", one.compute_dtype, other.compute_dtype)
        except InvalidError as error:
            return incomparable(error)
        same, apart = _compared(a, b, spec)
        found = {
            "conversations that differ": float(1 - same.mean()),
            "log-likelihood of equal answers": float(apart[same].max(initial=0.0)),
        }
        return difference(found, allowed)

    def narrow(
        self, spec: StudySpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Part | None:
        """The conversations with other words, or whose answers are not equally likely."""
        a, b = (parse_sketch(replica.sketch, spec.conversations) for replica in (one, other))
        allowed = tolerances.row("study.sketch", one.compute_dtype, other.compute_dtype)
        same, apart = _compared(a, b, spec)
        differs = ~same | (apart > allowed["log-likelihood of equal answers"])
        return Part(pieces=tuple(np.flatnonzero(differs).tolist())) if differs.any() else None

    def check_files(
        self,
        spec: StudySpec,
        files: Mapping[str, Path],
        inputs: Mapping[str, Path],
        sketch: bytes,
        geometry: ModelGeometry,
    ) -> None:
        frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
        shard = check_shard(files[SHARD_FILE], spec, frame, geometry)
        if sketch_shard(shard) != sketch:
            raise RefusedError(ReasonCode.SKETCH_MISMATCH, "the uploaded shard does not have the reported sketch")

    def flops(self, spec: StudySpec, geometry: ModelGeometry) -> int:
        """Of conversations as long as they may get, so that it is known beforehand."""
        asked = _FRAME_TOKENS + spec.question_tokens
        answered = asked + spec.answer_tokens
        head = 2 * geometry.vocab * geometry.hidden * (spec.question_tokens + spec.answer_tokens)
        each = flops(geometry, asked, spec.token_count) + flops(geometry, answered, spec.token_count) + head
        return flops(geometry, spec.token_count, 0) + spec.conversations * each

    def checkpoint_bytes_max(self, spec: StudySpec, geometry: ModelGeometry) -> int:
        """The shard so far; a former one may still lie beside it."""
        return 2 * shard_bytes(spec, geometry.vocab) + CHECKPOINT_HEADERS_BYTES


def _compared(
    one: StudySketch, other: StudySketch, spec: StudySpec
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Of each conversation: whether its words are the same, and how far apart its answer's likelihoods, a token."""
    same: npt.NDArray[np.bool_] = (one.digests == other.digests).all(axis=1)
    return same, np.abs(one.likelihood - other.likelihood) / spec.answer_tokens


def shard_bytes(spec: StudySpec, vocab: int) -> int:
    """The most a unit's shard can hold, without its header."""
    id_bytes = 2 if vocab <= 1 << 16 else 4
    answer_token = 4 + spec.top_k * (id_bytes + 2) + 4
    conversation = 16 + 4 * spec.question_tokens + answer_token * spec.answer_tokens
    return 64 + spec.conversations * conversation


def check_shard(path: Path, spec: StudySpec, frame: ChatFrame, geometry: ModelGeometry) -> Shard:
    """The shard that a unit asks for, by its form; raises RefusedError with the reason.

    VOCABULARY_MISMATCH when it is of another tokenizer, WRONG_SHAPE for everything else that needs no model: counts,
    lengths, answers that break off early or go on after a stop, answers that are not greedy by their own account.
    """
    largest = shard_bytes(spec, geometry.vocab) + _HEADER_BYTES_MAX
    if path.stat().st_size > largest:
        raise RefusedError(ReasonCode.UPLOAD_TOO_LARGE, f"{path.name}: at most {largest} bytes expected")
    try:
        shard = read_shard(path)
    except InvalidError as error:
        raise RefusedError(ReasonCode.WRONG_SHAPE, str(error)) from None
    if (shard.tokenizer, shard.vocab) != (frame.tokenizer, frame.vocab):
        raise RefusedError(ReasonCode.VOCABULARY_MISMATCH, f"{path.name}: made with another tokenizer")
    found = (len(shard), shard.purpose, shard.top_k)
    if found != (spec.conversations, spec.purpose, spec.top_k):
        asked = f"{spec.conversations} conversations to {spec.purpose} with {spec.top_k} log-probabilities"
        raise RefusedError(ReasonCode.WRONG_SHAPE, f"{path.name}: expected {asked}, found {found}")
    for index in range(len(shard)):
        fault = _fault(shard, index, spec, frame)
        if fault is not None:
            raise RefusedError(ReasonCode.WRONG_SHAPE, f"{path.name}: conversation {index}: {fault}")
    return shard


def _fault(shard: Shard, index: int, spec: StudySpec, frame: ChatFrame) -> str | None:
    question, answer = shard.question(index).tolist(), shard.answer(index).tolist()
    if len(question) > spec.question_tokens or {*frame.stops, *frame.question_stops} & set(question):
        return "a question too long, or with a stop in it"
    if bool(question) != bool(answer) or len(answer) > spec.answer_tokens:
        return "an answer without a question, none to one, or one too long"
    if not answer:
        return None
    if any(token in frame.stops for token in answer[:-1]):
        return "an answer that goes on after it has stopped"
    if answer[-1] not in frame.stops and len(answer) != spec.answer_tokens:
        return f"an answer that breaks off after {len(answer)} tokens"
    if answer != shard.top_ids[shard.rows(index), 0].tolist():
        return "an answer that is not its own likeliest"
    return None


def sketch_shard(shard: Shard) -> bytes:
    """Safetensors bytes with `digests` U8 [n, 8] and `likelihood` F32 [n]; float64 sums, so all hosts agree on it."""
    first = shard.top_logprobs[:, 0].astype(np.float64)
    sums = [first[shard.rows(index)].sum() for index in range(len(shard))]
    digests = b"".join(digest[:_DIGEST_BYTES] for digest in conversation_digests(shard))
    content: bytes = save(
        {
            "digests": np.frombuffer(digests, dtype=np.uint8).reshape(-1, _DIGEST_BYTES),
            "likelihood": np.array(sums, dtype=np.float32),
        }
    )
    return content


def parse_sketch(content: bytes, conversations: int) -> StudySketch:
    """A sketch from a stranger; raises RefusedError (BAD_SKETCH, NOT_FINITE) unless it has the unit's shape."""
    if len(content) > 12 * conversations + _SKETCH_HEADER_BYTES_MAX:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"sketch of {len(content)} bytes for {conversations} conversations")
    try:
        file = TensorFile.of_bytes(content, "sketch", _SKETCH_HEADER_BYTES_MAX)
    except InvalidError as error:
        raise RefusedError(ReasonCode.BAD_SKETCH, str(error)) from None
    found = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
    if found != {"digests": ("U8", (conversations, _DIGEST_BYTES)), "likelihood": ("F32", (conversations,))}:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"sketch: expected digests and likelihood, found {str(found)[:80]}")
    if not file.is_finite("likelihood"):
        raise RefusedError(ReasonCode.NOT_FINITE, "sketch: contains NaN or infinity")
    return StudySketch(digests=file.bits("digests"), likelihood=file.float32("likelihood"))


def audited(spec: StudySpec, draw: bytes) -> tuple[int, ...]:
    """Which conversations are replayed: one in sixteen, two at least, as `draw` has it."""
    count = min(spec.conversations, max(2, -(-spec.conversations // 16)))
    return sample(draw, "study conversation", range(spec.conversations), count)
