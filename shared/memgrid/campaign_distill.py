"""The `distill` part of a campaign file: what to train, on how much study, how, and how good it has to be."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictInt, StrictStr, model_validator

from memgrid.campaign_parts import Number, Part, contradiction, matching
from memgrid.cube.oci import is_repository, is_tag
from memgrid.specs import AdapterKind as _Kind
from memgrid.specs import AdapterSpec, Schedule
from memgrid.units import ComputeDtype

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _is_cube(text: str) -> bool:
    name, at, digest = text.partition("@")
    repository, colon, tag = name.partition(":")
    is_named = "/" in repository and is_repository(repository) and (not colon or is_tag(tag))
    return is_named and (not at or _DIGEST.fullmatch(digest) is not None)


CubeName = Annotated[StrictStr, matching(_is_cube)]


class PrefixAdapter(Part):
    """A trained KV prefix, of so many virtual tokens or so many times smaller than the text."""

    kind: Literal["prefix"]
    virtual_tokens: StrictInt | None = Field(default=None, ge=2, le=4096, description="a whole number from 2 to 4096")
    compression: Number | None = Field(default=None, ge=1, le=1000, description="a number from 1 to 1000")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.virtual_tokens is not None and self.compression is not None:
            raise contradiction("compression", "nothing beside virtual_tokens", f"{self.compression:g}")
        return self

    def shape(self, document_tokens: int) -> AdapterSpec:
        """What a document of that many tokens gets; without a size, a tenth of it.

        >>> PrefixAdapter(kind="prefix", compression=8).shape(512).virtual_tokens
        64
        """
        tokens = self.virtual_tokens or max(2, round(document_tokens / (self.compression or 10)))
        return AdapterSpec(kind=_Kind.PREFIX, virtual_tokens=tokens, frozen_tokens=1)


class LoraAdapter(Part):
    """Low-rank weights beside the model's own."""

    kind: Literal["lora"]
    rank: StrictInt = Field(default=8, ge=1, le=256, description="a whole number from 1 to 256")
    alpha: StrictInt | None = Field(default=None, ge=1, le=1024, description="a whole number from 1 to 1024")
    targets: tuple[StrictStr, ...] = Field(
        default=("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
        min_length=1,
        max_length=64,
        description="a list of module names such as q_proj",
    )
    frozen_a_seed: StrictInt | None = Field(default=None, ge=0, lt=2**53, description="a whole number from 0 on")

    def shape(self, document_tokens: int) -> AdapterSpec:
        """The same for every document."""
        return AdapterSpec(
            kind=_Kind.LORA,
            rank=self.rank,
            alpha=self.alpha or 2 * self.rank,
            targets=tuple(sorted(set(self.targets))),
            frozen_a_seed=self.frozen_a_seed,
        )


Adapter = Annotated[PrefixAdapter | LoraAdapter, Field(discriminator="kind")]


class Study(Part):
    """How much the model talks with itself about each chunk of a document."""

    chunk_tokens: StrictInt = Field(default=1024, ge=64, le=8192, description="a whole number from 64 to 8192")
    conversations: StrictInt = Field(default=128, ge=1, le=65536, description="a whole number from 1 to 65536")
    held_out: StrictInt = Field(default=32, ge=1, le=4096, description="a whole number from 1 to 4096")
    conversations_per_unit: StrictInt = Field(default=32, ge=1, le=1024, description="a whole number from 1 to 1024")
    temperature: Number = Field(default=0.6, gt=0, le=2, description="a number above 0, at most 2")
    question_tokens: StrictInt = Field(default=48, ge=4, le=1024, description="a whole number from 4 to 1024")
    answer_tokens: StrictInt = Field(default=96, ge=4, le=4096, description="a whole number from 4 to 4096")
    top_k: StrictInt = Field(default=20, ge=1, le=64, description="a whole number from 1 to 64")
    seed: StrictInt = Field(default=1, ge=0, lt=2**53, description="a whole number from 0 on")


class Mode(StrEnum):
    """`relay`: one state passes from host to host. `rounds`: many hosts train from the same state, then merge."""

    RELAY = "relay"
    ROUNDS = "rounds"


class Start(StrEnum):
    """Where a prefix starts: compacted from the text's KV cache, or KV of its first, or of sampled tokens."""

    COMPACTED = "compacted"
    FIRST_TOKENS = "first_tokens"
    SAMPLED = "sampled"


class Merge(StrEnum):
    """How the deltas of a round become one."""

    TRIMMED_MEAN = "trimmed_mean"
    CENTRED_CLIPPING = "centred_clipping"
    MEAN = "mean"


class Rounds(Part):
    """How a round is made and merged (DiLoCo: Nesterov momentum over merged deltas)."""

    members: StrictInt = Field(default=3, ge=1, le=64, description="a whole number from 1 to 64")
    local_steps: StrictInt = Field(default=32, ge=1, le=1000, description="a whole number from 1 to 1000")
    outer_learning_rate: Number = Field(default=0.7, gt=0, le=2, description="a number above 0, at most 2")
    outer_momentum: Number = Field(default=0.9, ge=0, lt=1, description="a number from 0 to below 1")
    merge: Merge = Field(default=Merge.TRIMMED_MEAN, description="trimmed_mean, centred_clipping or mean")
    trim: Number = Field(default=0.2, ge=0, lt=0.5, description="a number from 0 to below 0.5")
    enough: Number = Field(default=0.67, gt=0, le=1, description="a number above 0, at most 1")
    """The share of members after which a round need not wait for the others for longer than `wait_s`."""
    wait_s: Number = Field(default=600, ge=0, le=86400, description="seconds from 0 to 86400")
    staleness: StrictInt = Field(default=2, ge=0, le=8, description="a whole number from 0 to 8")
    """A late delta counts while its base is at most so many rounds old."""


SEGMENTS_MAX = 100
"""States that a unit may commit: a report names each of them."""


class Training(Part):
    """How much to train, and how. `learning_rate` None: 0.005 for a prefix, 0.002 for LoRA."""

    steps: StrictInt | None = Field(default=None, ge=1, le=100_000, description="a whole number from 1 to 100000")
    tokens: StrictInt | None = Field(default=None, ge=1, description="a whole number from 1 on")
    batch_rows: StrictInt = Field(default=4, ge=1, le=1024, description="a whole number from 1 to 1024")
    row_tokens: StrictInt = Field(default=512, ge=64, le=16384, description="a whole number from 64 to 16384")
    learning_rate: Number | None = Field(default=None, gt=0, le=1, description="a number above 0, at most 1")
    warmup_steps: StrictInt = Field(default=2, ge=0, description="a whole number from 0 on")
    schedule: Schedule = Field(default=Schedule.COSINE, description="constant, linear or cosine")
    start: Start = Field(default=Start.COMPACTED, description="compacted, first_tokens or sampled")
    mode: Mode = Field(default=Mode.RELAY, description="relay or rounds")
    steps_per_unit: StrictInt = Field(default=32, ge=1, le=1000, description="a whole number from 1 to 1000")
    segment_steps: StrictInt = Field(default=3, ge=1, le=100, description="a whole number from 1 to 100")
    rounds: Rounds = Field(default=Rounds(), description="a mapping")
    distractors: tuple[CubeName, ...] = Field(
        default=(), max_length=64, description="a list of cubes such as handbook/chapter-1:1.0.0"
    )
    siblings: StrictBool = Field(default=False, description="true or false")
    """Whether the other documents of the campaign, as they start, serve as distractors too."""
    distractor_share: Number = Field(default=0.5, ge=0, le=1, description="a number from 0 to 1")
    seed: StrictInt = Field(default=1, ge=0, lt=2**53, description="a whole number from 0 on")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.tokens is not None:
            raise contradiction("tokens", "nothing beside steps", self.tokens)
        if self.warmup_steps >= self.total_steps > 1:
            raise contradiction("warmup_steps", f"fewer than the {self.total_steps} steps", self.warmup_steps)
        if self.segment_steps > self.unit_steps:
            name = "rounds.local_steps" if self.mode is Mode.ROUNDS else "steps_per_unit"
            raise contradiction("segment_steps", f"at most {name} ({self.unit_steps})", self.segment_steps)
        least = -(-self.unit_steps // SEGMENTS_MAX)
        if self.segment_steps < least:
            expected = f"at least {least}, so that a unit commits at most {SEGMENTS_MAX} states"
            raise contradiction("segment_steps", expected, self.segment_steps)
        return self

    @model_validator(mode="after")
    def _one_mode(self) -> Self:
        if self.mode is Mode.RELAY:
            if self.rounds != Rounds():
                raise contradiction("rounds", "nothing in mode relay", "a mapping")
            return self
        local_steps = self.rounds.local_steps
        if self.steps_per_unit != Training.model_fields["steps_per_unit"].default:
            expected = f"nothing in mode rounds, where rounds.local_steps ({local_steps}) counts"
            raise contradiction("steps_per_unit", expected, self.steps_per_unit)
        if self.steps is not None and self.steps % local_steps:
            raise contradiction("steps", f"a multiple of rounds.local_steps ({local_steps})", self.steps)
        return self

    @property
    def unit_steps(self) -> int:
        """Steps of one unit; the last of a relay may have fewer."""
        return self.rounds.local_steps if self.mode is Mode.ROUNDS else self.steps_per_unit

    @property
    def total_steps(self) -> int:
        """Logical steps; without a budget, 64. Rounds are whole: a budget in tokens is rounded up to them.

        >>> Training(tokens=100_000).total_steps, Training(tokens=100_000, mode="rounds").total_steps
        (49, 64)
        """
        if self.steps is not None:
            return self.steps
        steps = 64 if self.tokens is None else -(-self.tokens // (self.batch_rows * self.row_tokens))
        return -(-steps // self.unit_steps) * self.unit_steps if self.mode is Mode.ROUNDS else steps


class QualityBar(Part):
    """What a cube has to reach to be published."""

    min_gap_closed: Number = Field(default=0.5, ge=-10, le=1, description="a number up to 1")
    """Share of the NLL gap between no text and the text in context, on held-out conversations."""


class DistillParameters(Part):
    """How documents become adapters."""

    adapter: Adapter = Field(default=PrefixAdapter(kind="prefix"), description="a mapping with kind prefix or lora")
    study: Study = Field(default=Study(), description="a mapping")
    train: Training = Field(default=Training(), description="a mapping")
    quality: QualityBar = Field(default=QualityBar(), description="a mapping")
    items_per_evaluation: StrictInt = Field(default=32, ge=1, le=1024, description="a whole number from 1 to 1024")
    compute_dtype: ComputeDtype = Field(default=ComputeDtype.AUTO, description="auto, float32, float16 or bfloat16")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        longest = self.study.question_tokens + self.study.answer_tokens
        if self.train.row_tokens < longest:
            expected = f"room for the longest conversation (question_tokens + answer_tokens = {longest})"
            raise contradiction("train.row_tokens", expected, self.train.row_tokens)
        if isinstance(self.adapter, LoraAdapter):
            self._check_lora()
        return self

    def _check_lora(self) -> None:
        train = self.train
        if train.start is not Start.COMPACTED:
            raise contradiction("train.start", "nothing for lora, which starts at zero", repr(train.start.value))
        only = "for lora: only prefixes are trained beside others"
        if train.distractors:
            raise contradiction("train.distractors", f"nothing {only}", f"a list of {len(train.distractors)}")
        if train.siblings:
            raise contradiction("train.siblings", f"false {only}", "true")

    @property
    def learning_rate(self) -> float:
        default = 0.005 if self.adapter.kind == "prefix" else 0.002
        return self.train.learning_rate or default
