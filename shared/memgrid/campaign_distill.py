"""The `distill` part of a campaign file: what to train, on how much study, how, and how good it has to be."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StrictInt, StrictStr, model_validator
from pydantic_core import PydanticCustomError

from memgrid.campaign_parts import Part
from memgrid.specs import AdapterKind as _Kind
from memgrid.specs import AdapterSpec, Schedule
from memgrid.units import ComputeDtype


class PrefixAdapter(Part):
    """A trained KV prefix, of so many virtual tokens or so many times smaller than the text."""

    kind: Literal["prefix"]
    virtual_tokens: StrictInt | None = Field(default=None, ge=2, le=4096, description="a whole number from 2 to 4096")
    compression: float | None = Field(default=None, ge=1, le=1000, description="a number from 1 to 1000")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.virtual_tokens is not None and self.compression is not None:
            raise PydanticCustomError("order", "expected virtual_tokens or compression, found both")
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
    temperature: float = Field(default=0.6, gt=0, le=2, description="a number above 0, at most 2")
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
    outer_learning_rate: float = Field(default=0.7, gt=0, le=2, description="a number above 0, at most 2")
    outer_momentum: float = Field(default=0.9, ge=0, lt=1, description="a number from 0 to below 1")
    merge: Merge = Field(default=Merge.TRIMMED_MEAN, description="trimmed_mean, centred_clipping or mean")
    trim: float = Field(default=0.2, ge=0, lt=0.5, description="a number from 0 to below 0.5")
    enough: float = Field(default=0.67, gt=0, le=1, description="a number above 0, at most 1")
    """The share of members after which a round need not wait for the others for longer than `wait_s`."""
    wait_s: float = Field(default=600, ge=0, le=86400, description="seconds from 0 to 86400")
    staleness: StrictInt = Field(default=2, ge=0, le=8, description="a whole number from 0 to 8")
    """A late delta counts while its base is at most so many rounds old."""


class Training(Part):
    """How much to train, and how. `learning_rate` None: 0.02 for a prefix, 2e-4 for LoRA."""

    steps: StrictInt | None = Field(default=None, ge=1, le=100_000, description="a whole number from 1 to 100000")
    tokens: StrictInt | None = Field(default=None, ge=1, description="a whole number from 1 on")
    batch_rows: StrictInt = Field(default=4, ge=1, le=1024, description="a whole number from 1 to 1024")
    row_tokens: StrictInt = Field(default=512, ge=64, le=16384, description="a whole number from 64 to 16384")
    learning_rate: float | None = Field(default=None, gt=0, le=1, description="a number above 0, at most 1")
    warmup_steps: StrictInt = Field(default=2, ge=0, description="a whole number from 0 on")
    schedule: Schedule = Field(default=Schedule.COSINE, description="constant, linear or cosine")
    start: Start = Field(default=Start.COMPACTED, description="compacted, first_tokens or sampled")
    mode: Mode = Field(default=Mode.RELAY, description="relay or rounds")
    steps_per_unit: StrictInt = Field(default=16, ge=1, le=1000, description="a whole number from 1 to 1000")
    segment_steps: StrictInt = Field(default=4, ge=1, le=100, description="a whole number from 1 to 100")
    rounds: Rounds = Field(default=Rounds(), description="a mapping")
    distractors: tuple[StrictStr, ...] = Field(
        default=(), max_length=64, description="a list of cubes such as handbook/chapter-1:1.0.0"
    )
    siblings: bool = Field(default=False, description="true or false")
    """Whether the other documents of the campaign, as they start, serve as distractors too."""
    distractor_share: float = Field(default=0.5, ge=0, le=1, description="a number from 0 to 1")
    seed: StrictInt = Field(default=1, ge=0, lt=2**53, description="a whole number from 0 on")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.tokens is not None:
            raise PydanticCustomError("order", "expected steps or tokens, found both")
        return self

    @property
    def total_steps(self) -> int:
        """Logical steps; without a budget, 64.

        >>> Training(tokens=100_000).total_steps
        49
        """
        if self.tokens is not None:
            return -(-self.tokens // (self.batch_rows * self.row_tokens))
        return self.steps or 64


class QualityBar(Part):
    """What a cube has to reach to be published."""

    min_gap_closed: float = Field(default=0.5, ge=-10, le=1, description="a number up to 1")
    """Share of the NLL gap between no text and the text in context, on held-out conversations."""


class DistillParameters(Part):
    """How documents become adapters."""

    adapter: Adapter = Field(default=PrefixAdapter(kind="prefix"), description="a mapping with kind prefix or lora")
    study: Study = Field(default=Study(), description="a mapping")
    train: Training = Field(default=Training(), description="a mapping")
    quality: QualityBar = Field(default=QualityBar(), description="a mapping")
    items_per_evaluation: StrictInt = Field(default=32, ge=1, le=1024, description="a whole number from 1 to 1024")
    compute_dtype: ComputeDtype = Field(default=ComputeDtype.AUTO, description="auto, float32, float16 or bfloat16")

    @property
    def learning_rate(self) -> float:
        default = 0.02 if self.adapter.kind == "prefix" else 2e-4
        return self.train.learning_rate or default
