"""What each kind of unit asks. A spec's canonical bytes are its identity, so equal work is computed once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from memgrid.digest import Digest, canonical_json, digest_of, parse_digest
from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype, StoreDtype, UnitKey


def unit_key_of(spec: bytes) -> UnitKey:
    """The key of a unit from its canonical spec."""
    return UnitKey(digest_of(spec).removeprefix("sha256:"))


def _plain(value: Any) -> Any:
    """A spec as JSON has it; parts of it may be dataclasses too."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


class _Spec:
    """What all specs can do; each is a frozen dataclass whose fields are everything that determines its result."""

    __slots__ = ()
    kind: ClassVar[str]

    def to_bytes(self) -> bytes:
        """Canonical JSON; its sha256 is the unit's key."""
        return canonical_json({"kind": self.kind, "version": 1, **_plain(self)})

    @property
    def key(self) -> UnitKey:
        return unit_key_of(self.to_bytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Parse a spec of this kind; raises InvalidError naming the field."""
        try:
            value = json.loads(content)
            found = (value.pop("kind"), value.pop("version"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidError(f"unit spec: {type(error).__name__}: {error}"[:300]) from None
        if found != (cls.kind, 1):
            raise InvalidError(f"unit spec: expected kind {cls.kind}, version 1, found {str(found)[:80]}")
        spec: Self = _read(cls, value, "unit spec")
        if spec.to_bytes() != content:
            raise InvalidError("unit spec: not in canonical form")
        return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillSpec(_Spec):
    """Everything that determines the KV cache of one chunk of tokens.

    `parent` is the unit whose cache this one continues (chained layout); None starts at position 0. `start` is
    the position of the first token, `tokens` the digest of the ids as little-endian u32.

    >>> spec = PrefillSpec(model=digest_of(b"m"), tokens=digest_of(b"t"), token_count=256, start=0, parent=None,
    ...     compute_dtype=ComputeDtype.AUTO, store_dtype=StoreDtype.BFLOAT16)
    >>> PrefillSpec.from_bytes(spec.to_bytes()) == spec
    True
    """

    kind: ClassVar[str] = "prefill"

    model: Digest
    tokens: Digest
    token_count: int
    start: int
    parent: UnitKey | None
    compute_dtype: ComputeDtype
    store_dtype: StoreDtype


class Purpose(StrEnum):
    """What conversations are for; it is part of their noise, so that no seed yields the same for both."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpec(_Spec):
    """Conversations of a model with itself about one chunk of text: bot A asks, bot B answers greedily.

    `tokens` are the chunk as the conversations' context (the document's part of the chat template), `frame` the
    tokens around questions and answers (`memgrid.kinds.frame`). Conversation i of this unit draws its seed prompt
    and its noise from (`seed`, `purpose`, `first` + i) alone, so each can be replayed by itself.
    """

    kind: ClassVar[str] = "study"

    model: Digest
    frame: Digest
    tokens: Digest
    token_count: int
    purpose: Purpose
    seed: int
    first: int
    conversations: int
    temperature: float
    question_tokens: int
    """The longest question."""
    answer_tokens: int
    """The longest answer."""
    top_k: int
    """Log-probabilities kept of each answer token; the rest is one tail."""
    compute_dtype: ComputeDtype


class AdapterKind(StrEnum):
    """`prefix`: a trained KV prefix (PEFT CARTRIDGE). `lora`: low-rank weights (PEFT LORA)."""

    PREFIX = "prefix"
    LORA = "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """The shape of an adapter. Fields of the other kind are 0, empty or None."""

    kind: AdapterKind
    virtual_tokens: int = 0
    frozen_tokens: int = 0
    """The first ones stay as they started: the attention sink."""
    rank: int = 0
    alpha: int = 0
    targets: tuple[str, ...] = ()
    """Module names such as `q_proj`, sorted."""
    frozen_a_seed: int | None = None
    """When given, A is drawn from this seed and only B is trained."""


class Schedule(StrEnum):
    """How the learning rate goes down after its warm-up, over all steps of the campaign."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec(_Spec):
    """Some steps of training, from one committed state to the next.

    Steps `first_step` up to, not including, `stop_step` of `total_steps`; a state is committed every
    `segment_steps`. A logical step is `batch_rows` packed rows of at most `row_tokens` tokens, whatever the
    micro-batch. Which conversations stand in which row follows from the shards, `seed`, `stream` and the step alone.
    `stream` of `streams` is this unit's share of the data: members of a round see different conversations.
    `round` counts rounds from 1; it is 0 in a relay. What is handed on between rounds is parameters alone.
    `distractors` are adapters of other texts that are attached beside this one in a share of the rows.
    """

    kind: ClassVar[str] = "train"

    model: Digest
    frame: Digest
    adapter: AdapterSpec
    state: Digest
    shards: tuple[Digest, ...]
    distractors: tuple[Digest, ...]
    distractor_share: float
    first_step: int
    stop_step: int
    total_steps: int
    segment_steps: int
    batch_rows: int
    row_tokens: int
    learning_rate: float
    warmup_steps: int
    schedule: Schedule
    seed: int
    round: int
    stream: int
    streams: int
    compute_dtype: ComputeDtype

    @property
    def segments(self) -> int:
        """How many states the unit commits; the last is its result."""
        return -(-(self.stop_step - self.first_step) // self.segment_steps)

    @property
    def cold_step(self) -> int:
        """Where Adam begins, its moments nought: with each round anew, in a relay at the very first step."""
        return self.first_step if self.round else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec(_Spec):
    """Scores of an adapter on conversations it never saw, beside those of the bare model.

    `adapter_file` is the adapter as it will be published (None scores the bare model alone); `first` and `items`
    pick conversations from the held-out shards, in order.
    """

    kind: ClassVar[str] = "evaluate"

    model: Digest
    frame: Digest
    adapter: AdapterSpec | None
    adapter_file: Digest | None
    shards: tuple[Digest, ...]
    first: int
    items: int
    compute_dtype: ComputeDtype


Spec = PrefillSpec | StudySpec | TrainSpec | EvaluateSpec
_SPECS: dict[str, type[Spec]] = {spec.kind: spec for spec in (PrefillSpec, StudySpec, TrainSpec, EvaluateSpec)}


def parse_spec(content: bytes) -> Spec:
    """A spec of whatever kind; raises InvalidError naming the field.

    >>> parse_spec(b'{"kind":"dig"}')
    Traceback (most recent call last):
    ...
    memgrid.errors.InvalidError: unit spec: expected one of prefill, study, train, evaluate, found 'dig'
    """
    try:
        kind = json.loads(content)["kind"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidError(f"unit spec: {type(error).__name__}: {error}"[:300]) from None
    if not isinstance(kind, str) or kind not in _SPECS:
        raise InvalidError(f"unit spec: expected one of {', '.join(_SPECS)}, found {str(kind)[:40]!r}")
    return _SPECS[kind].from_bytes(content)


def _read(kind: type[Any], value: Any, where: str) -> Any:
    """A dataclass from JSON: every field there, of its type, and no other."""
    readers = {field.name: _READERS[str(field.type)] for field in fields(kind)}
    if not isinstance(value, dict):
        raise InvalidError(f"{where}: expected a mapping, found {str(value)[:80]}")
    for name in sorted(set(value) ^ set(readers)):
        raise InvalidError(f"{where}: {'unknown' if name in value else 'missing'} field {name[:80]!r}")
    found = {}
    for name, reader in readers.items():
        try:
            found[name] = reader(value[name])
        except (ValueError, TypeError, OverflowError, InvalidError) as error:
            raise InvalidError(f"{where}: {name}: {error}"[:300]) from None
    return kind(**found)


def _whole(value: Any) -> int:
    # Canonical JSON has numbers exactly up to 2**53 only.
    if type(value) is not int or not 0 <= value < 2**53:
        raise InvalidError(f"expected a whole number from 0 to 2**53, found {str(value)[:40]}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidError(f"expected a number, found {str(value)[:40]}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise InvalidError(f"expected a short text, found {str(value)[:40]}")
    return value


def _maybe(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else reader(value)


def _many(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise InvalidError(f"expected a list, found {str(value)[:40]}")
        return tuple(reader(each) for each in value)

    return read


def _digest(value: Any) -> Digest:
    return parse_digest(_text(value))


def _adapter(value: Any) -> AdapterSpec:
    spec: AdapterSpec = _read(AdapterSpec, value, "adapter")
    return spec


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _whole,
    "int | None": _maybe(_whole),
    "float": _number,
    "Digest": _digest,
    "Digest | None": _maybe(_digest),
    "tuple[Digest, ...]": _many(_digest),
    "tuple[str, ...]": _many(_text),
    "UnitKey | None": _maybe(lambda value: UnitKey(_digest(f"sha256:{value}").removeprefix("sha256:"))),
    "ComputeDtype": ComputeDtype,
    "StoreDtype": StoreDtype,
    "Purpose": Purpose,
    "Schedule": Schedule,
    "AdapterKind": AdapterKind,
    "AdapterSpec": _adapter,
    "AdapterSpec | None": _maybe(_adapter),
}
