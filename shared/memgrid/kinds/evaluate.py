"""What an evaluate unit hands in: scores of held-out conversations, how two hosts' compare, and what they add up to.

`scores.safetensors` holds, for n conversations: `tokens` I32 [n], those of each answer; and for each arm (`none`, the
bare model; `cube`, with the adapter) the sums over the answer's tokens `<arm>.nll` F32 [n] and `<arm>.kl` F32 [n]
(from the teacher to the arm, over its likeliest tokens and the tail), and `<arm>.correct` I32 [n], how many tokens
were the arm's first choice. `text.nll` F32 [n] is the teacher's own, who had the text before him: the other anchor.
The file is its own sketch, for there is nothing smaller that would say as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.cube.parts import Quality
from memgrid.errors import InvalidError
from memgrid.kinds.frame import FRAME_FILE, ChatFrame
from memgrid.kinds.kind import CHECKPOINT_HEADERS_BYTES, Difference, InputFile, Replica, difference, incomparable
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import ModelGeometry, flops
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import Shard, read_shard
from memgrid.kinds.tensorfile import TensorFile
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import EvaluateSpec
from memgrid.units import Output, ReasonCode

SCORES_FILE = "scores.safetensors"
SCORES_FORMAT = "memgrid.scores.v1"
ADAPTER_FILE = "adapter.safetensors"
NONE, CUBE = "none", "cube"
_HEADER_BYTES_MAX = 2048
_ITEM_TOKENS = 256
"""What a conversation costs to score; part of the price, so it is fixed."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmScores:
    """One arm's sums over each answer [n]."""

    nll: Doubles
    kl: Doubles
    correct: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Scores of n conversations in order."""

    tokens: npt.NDArray[np.int64]
    text_nll: Doubles
    arms: dict[str, ArmScores]

    def __len__(self) -> int:
        return len(self.tokens)


class EvaluateKind:
    """Implements `memgrid.kinds.kind.UnitKind`."""

    is_audited = False

    def inputs(self, spec: EvaluateSpec) -> tuple[InputFile, ...]:
        adapter = () if spec.adapter_file is None else (InputFile(name=ADAPTER_FILE, digest=spec.adapter_file),)
        shards = (InputFile(name=shard_name(number), digest=digest) for number, digest in enumerate(spec.shards))
        return (InputFile(name=FRAME_FILE, digest=spec.frame), *adapter, *shards)

    def check_claim(
        self, spec: EvaluateSpec, outputs: Sequence[Output], sketch: bytes, geometry: ModelGeometry
    ) -> None:
        largest = _scores_bytes(spec)
        if [output.name for output in outputs] != [SCORES_FILE] or outputs[0].size_bytes > largest:
            raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"expected one {SCORES_FILE} of at most {largest} bytes")
        if len(sketch) != outputs[0].size_bytes:
            raise RefusedError(ReasonCode.BAD_SKETCH, f"sketch: expected the {outputs[0].size_bytes} bytes of scores")
        parse_scores(sketch, spec)

    def wanted(
        self, spec: EvaluateSpec, outputs: Sequence[Output], draw: bytes, part: Part | None = None
    ) -> tuple[Output, ...]:
        return tuple(outputs)

    def compare(
        self, spec: EvaluateSpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Difference:
        try:
            found = score_differences(parse_scores(one.sketch, spec), parse_scores(other.sketch, spec))
            allowed = tolerances.row("evaluate.sketch", one.compute_dtype, other.compute_dtype)
        except InvalidError as error:
            return incomparable(error)
        return difference(found, allowed)

    def narrow(
        self, spec: EvaluateSpec, one: Replica, other: Replica, geometry: ModelGeometry, tolerances: Tolerances
    ) -> Part | None:
        """The items that differ beyond tolerance; else the one that is furthest off."""
        a, b = (parse_scores(replica.sketch, spec) for replica in (one, other))
        allowed = tolerances.row("evaluate.sketch", one.compute_dtype, other.compute_dtype)
        beyond = np.zeros(spec.items, dtype=bool)
        for name in a.arms:
            for what, apart in _of_items(a, b, name).items():
                beyond |= ~(apart <= allowed[f"{name}: {what} of an item"])
        pieces = tuple(np.flatnonzero(beyond).tolist())
        return Part(pieces=pieces or (furthest_item(a, b),))

    def check_files(
        self,
        spec: EvaluateSpec,
        files: Mapping[str, Path],
        inputs: Mapping[str, Path],
        sketch: bytes,
        geometry: ModelGeometry,
    ) -> None:
        """Form, and what needs no model: each answer's length and the teacher's own likelihood of it."""
        if files[SCORES_FILE].stat().st_size > _scores_bytes(spec):
            raise RefusedError(ReasonCode.UPLOAD_TOO_LARGE, f"{SCORES_FILE}: larger than its unit's can be")
        content = files[SCORES_FILE].read_bytes()
        if content != sketch:
            raise RefusedError(ReasonCode.SKETCH_MISMATCH, "the uploaded scores are not the reported ones")
        scores = parse_scores(content, spec)
        tokens, text_nll = teacher_scores(read_items(spec, inputs))
        same_nll = np.allclose(scores.text_nll, text_nll, rtol=1e-5, atol=1e-4)
        if scores.tokens.tolist() != tokens.tolist() or not same_nll:
            raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"{SCORES_FILE}: these are scores of other conversations")

    def flops(self, spec: EvaluateSpec, geometry: ModelGeometry) -> int:
        past = 0 if spec.adapter is None else spec.adapter.virtual_tokens
        head = 2 * geometry.vocab * geometry.hidden * _ITEM_TOKENS
        bare = flops(geometry, _ITEM_TOKENS, 0) + head
        attached = 0 if spec.adapter is None else flops(geometry, _ITEM_TOKENS, past) + head
        return spec.items * (bare + attached)

    def checkpoint_bytes_max(self, spec: EvaluateSpec, geometry: ModelGeometry) -> int:
        """Three sums of eight bytes an item, for each arm; former ones may still lie beside them."""
        return 2 * 2 * 3 * 8 * spec.items + CHECKPOINT_HEADERS_BYTES


def shard_name(number: int) -> str:
    return f"shards/{number:04d}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items:
    """The conversations that a unit scores: (shard, conversation) of each, in order."""

    shards: tuple[Shard, ...]
    places: tuple[tuple[int, int], ...]


def read_items(spec: EvaluateSpec, inputs: Mapping[str, Path]) -> Items:
    """Conversations `first` to `first + items` of all shards, counted through.

    Raises RefusedError: VOCABULARY_MISMATCH when a shard is of another tokenizer than the frame, INPUT_UNAVAILABLE
    when there are fewer conversations than the unit names.
    """
    frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
    shards = tuple(read_shard(inputs[shard_name(number)]) for number in range(len(spec.shards)))
    for number, shard in enumerate(shards):
        if (shard.tokenizer, shard.vocab) != (frame.tokenizer, frame.vocab):
            raise RefusedError(ReasonCode.VOCABULARY_MISMATCH, f"{shard_name(number)}: made with another tokenizer")
    places = [(number, index) for number, shard in enumerate(shards) for index in range(len(shard))]
    chosen = places[spec.first : spec.first + spec.items]
    if len(chosen) != spec.items:
        text = (
            f"the shards hold {len(places)} conversations, the unit names {spec.first} to {spec.first + spec.items}"
        )
        raise RefusedError(ReasonCode.INPUT_UNAVAILABLE, text)
    return Items(shards=shards, places=tuple(chosen))


def teacher_scores(items: Items) -> tuple[npt.NDArray[np.int64], Doubles]:
    """Answer tokens of each item, and the teacher's own NLL of them: answers are its likeliest tokens."""
    rows = [(items.shards[number], items.shards[number].rows(index)) for number, index in items.places]
    tokens = [part.stop - part.start for _, part in rows]
    nll = [-float(shard.top_logprobs[part, 0].astype(np.float64).sum()) for shard, part in rows]
    return np.array(tokens, dtype=np.int64), np.array(nll)


def scores_bytes(scores: Scores) -> bytes:
    """The file; equal scores give equal bytes."""
    tensors: dict[str, npt.NDArray[np.generic]] = {
        "tokens": scores.tokens.astype(np.int32),
        "text.nll": scores.text_nll.astype(np.float32),
    }
    for name, arm in scores.arms.items():
        tensors[f"{name}.nll"] = arm.nll.astype(np.float32)
        tensors[f"{name}.kl"] = arm.kl.astype(np.float32)
        tensors[f"{name}.correct"] = arm.correct.astype(np.int32)
    content: bytes = save(tensors, metadata={"format": SCORES_FORMAT})
    return content


def parse_scores(content: bytes, spec: EvaluateSpec) -> Scores:
    """Scores from a stranger; raises RefusedError (BAD_SKETCH, NOT_FINITE) unless they are those of such a unit."""
    arms = (NONE,) if spec.adapter is None else (NONE, CUBE)
    expected = {"tokens": "I32", "text.nll": "F32"}
    expected |= {f"{arm}.{what}": "F32" for arm in arms for what in ("nll", "kl")}
    expected |= {f"{arm}.correct": "I32" for arm in arms}
    try:
        file = TensorFile.of_bytes(content, "scores", _HEADER_BYTES_MAX)
    except InvalidError as error:
        raise RefusedError(ReasonCode.BAD_SKETCH, str(error)) from None
    found = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
    if found != {name: (dtype, (spec.items,)) for name, dtype in expected.items()}:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"scores: expected {', '.join(expected)} of {spec.items} items")
    if file.metadata != {"format": SCORES_FORMAT}:
        raise RefusedError(ReasonCode.BAD_SKETCH, f"scores: metadata: expected only format={SCORES_FORMAT}")
    return _checked(file, arms)


def _checked(file: TensorFile, arms: Sequence[str]) -> Scores:
    tokens = file.bits("tokens").astype(np.int64)
    for name, info in file.tensors.items():
        if info.dtype == "F32" and not file.is_finite(name):
            raise RefusedError(ReasonCode.NOT_FINITE, f"scores: {name}: contains NaN or infinity")
        if info.dtype == "I32" and bool(((file.bits(name) < 0) | (file.bits(name) > tokens)).any()):
            raise RefusedError(ReasonCode.BAD_SKETCH, f"scores: {name}: more tokens than there are")
    return Scores(
        tokens=tokens,
        text_nll=file.float32("text.nll").astype(np.float64),
        arms={
            arm: ArmScores(
                nll=file.float32(f"{arm}.nll").astype(np.float64),
                kl=file.float32(f"{arm}.kl").astype(np.float64),
                correct=file.bits(f"{arm}.correct").astype(np.int64),
            )
            for arm in arms
        },
    )


def score_differences(one: Scores, other: Scores) -> dict[str, float]:
    """How far two scorings of the same items lie apart, in nats a token; infinite when they are not of the same.

    An item of few tokens scatters more: its difference counts by the root of its length over 128.
    """
    if one.tokens.tolist() != other.tokens.tolist() or set(one.arms) != set(other.arms):
        return {"items": float("inf")}
    found: dict[str, float] = {"items": 0.0}
    tokens = np.maximum(one.tokens, 1)
    for name in sorted(one.arms):
        a, b = one.arms[name], other.arms[name]
        for what, apart in _of_items(one, other, name).items():
            found[f"{name}: {what} of an item"] = float(apart.max(initial=0))
        for what, sums in (("NLL", a.nll - b.nll), ("KL", a.kl - b.kl)):
            found[f"{name}: {what} of all"] = float(abs(sums.sum()) / tokens.sum())
        flips = np.abs(a.correct - b.correct).sum()
        found[f"{name}: first choices"] = float(max(0, flips - 1) / tokens.sum())
    return found


def _of_items(one: Scores, other: Scores, arm: str) -> dict[str, Doubles]:
    """How far apart the items' sums are [n], in nats a token, weighted by their lengths."""
    tokens = np.maximum(one.tokens, 1)
    weight = np.sqrt(np.minimum(tokens, 128) / 128) / tokens
    a, b = one.arms[arm], other.arms[arm]
    return {"NLL": np.abs(a.nll - b.nll) * weight, "KL": np.abs(a.kl - b.kl) * weight}


def furthest_item(one: Scores, other: Scores) -> int:
    """The item whose scores lie furthest apart, in nats a token."""
    apart = np.zeros(len(one))
    for name in sorted(set(one.arms) & set(other.arms)):
        a, b = one.arms[name], other.arms[name]
        apart = np.maximum(apart, np.maximum(np.abs(a.nll - b.nll), np.abs(a.kl - b.kl)))
    return int(np.argmax(apart / np.maximum(one.tokens, 1)))


def summarise(files: Iterable[bytes], specs: Iterable[EvaluateSpec]) -> Quality:
    """What the scores of all units of one adapter add up to: every answer token counts alike.

    Raises InvalidError when there is nothing to add up, or a unit scored no adapter.
    """
    parts = [parse_scores(content, spec) for content, spec in zip(files, specs, strict=True)]
    if not parts or any(CUBE not in part.arms for part in parts):
        raise InvalidError("quality: expected the scores of an adapter")
    tokens = np.concatenate([part.tokens for part in parts])
    count = int(tokens.sum())
    if not count:
        raise InvalidError("quality: expected conversations with answers")
    nll, kl, correct, exact = {}, {}, {}, {}
    for arm in (NONE, CUBE):
        scores = [part.arms[arm] for part in parts]
        right = np.concatenate([each.correct for each in scores])
        nll[arm] = float(sum(each.nll.sum() for each in scores)) / count
        kl[arm] = float(sum(each.kl.sum() for each in scores)) / count
        correct[arm] = float(right.sum()) / count
        exact[arm] = float((right == tokens)[tokens > 0].mean())
    return Quality(
        items=int((tokens > 0).sum()),
        tokens=count,
        nll_none=nll[NONE],
        nll_cube=nll[CUBE],
        nll_text=float(sum(part.text_nll.sum() for part in parts)) / count,
        kl_none=kl[NONE],
        kl_cube=kl[CUBE],
        correct_none=correct[NONE],
        correct_cube=correct[CUBE],
        exact_none=exact[NONE],
        exact_cube=exact[CUBE],
    )


def _scores_bytes(spec: EvaluateSpec) -> int:
    return 8 * 4 * spec.items + _HEADER_BYTES_MAX
