"""The campaign file: what an operator asks of a grid, checked before anything is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AwareDatetime,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from memgrid.campaign_distill import DistillParameters
from memgrid.campaign_parts import Number, Part, contradiction, matching
from memgrid.campaign_problems import problems_of
from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.digest import canonical_json
from memgrid.errors import InvalidError
from memgrid.units import ComputeDtype, StoreDtype

CAMPAIGN_BYTES_MAX = 1 << 20
"""The largest campaign file; sources are named in it, not written into it."""

_NAME = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_MODEL_REFERENCE = re.compile(rf"models/{_NAME}(?::{_TAG})?(?:@sha256:[0-9a-f]{{64}})?")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:-]*(?: (?:AND|OR|WITH) [A-Za-z0-9][A-Za-z0-9.+:-]*)*")


_OTHER_PARAMETERS = {"activation": "distill", "distill": "activation"}
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:-[A-Za-z0-9._-]+)?")


def _is_folder(model: str) -> bool:
    return model.startswith((".", "/", "~"))


Name = Annotated[StrictStr, Field(max_length=64), matching(re.compile(_NAME).fullmatch)]
Licence = Annotated[StrictStr, Field(max_length=128), matching(_LICENCE.fullmatch)]
Version = Annotated[StrictStr, Field(max_length=64), matching(_VERSION.fullmatch)]
Model = Annotated[StrictStr, matching(lambda text: _is_folder(text) or _MODEL_REFERENCE.fullmatch(text))]

_NAME_FORM = "a name of small letters, digits, '.', '_' and '-'"
_LICENCE_FORM = "an SPDX licence such as CC-BY-4.0"


class SourcePattern(Part):
    """Files to read: one path or a pattern, relative to the campaign file."""

    path: StrictStr = Field(min_length=1, description="a path or a pattern such as docs/**/*.md")
    licence: Licence | None = Field(default=None, description=_LICENCE_FORM)
    text_column: StrictStr = Field(default="text", min_length=1, description="the name of a column or key")
    id_column: StrictStr = Field(default="", description="the name of a column or key")


class ActivationParameters(Part):
    """How documents become KV caches.

    Chained chunks continue one another, so the cube is what reading the whole text gives; independent ones can all
    be computed at the same time, and are moved into place when they are attached: an approximation.
    """

    layout: LayoutKind = Field(default=LayoutKind.CHAINED, description="chained or independent")
    chunk_tokens: StrictInt | None = Field(
        default=None, ge=16, le=8192, description="a whole number from 16 to 8192, or nothing to let the grid choose"
    )
    target_unit_s: Number = Field(default=20, ge=1, le=3600, description="seconds from 1 to 3600")
    compute_dtype: ComputeDtype = Field(default=ComputeDtype.AUTO, description="auto, float32, float16 or bfloat16")
    store_dtype: StoreDtype = Field(default=StoreDtype.BFLOAT16, description="float32, float16 or bfloat16")
    wrap: Wrap = Field(default=Wrap.CHAT, description="chat or plain")
    sink_tokens: StrictInt = Field(default=1, ge=0, le=64, description="a whole number from 0 to 64")


class Publication(Part):
    """Where the cubes go, and under which licence."""

    namespace: Name = Field(description=_NAME_FORM)
    version: Version = Field(description='a version in quotes such as "1.0.0"')
    licence: Licence = Field(description=_LICENCE_FORM)
    title: StrictStr | None = Field(default=None, min_length=1, max_length=200, description="a line of text")


class Trust(Part):
    """How results are checked.

    With `min_replicas` of 2 or more, so many hosts compute every unit and have to agree. With 1, one host does, and
    parts of its results are computed again by the grid: the more of them, the less is known of the host. `epsilon`
    and `f_bar` say how strict that is.
    """

    min_replicas: StrictInt | None = Field(default=None, ge=1, le=9, description="a whole number from 1 to 9")
    """None: 1 for units that the grid replays in part (study and train) and for models that it was calibrated for,
    otherwise 2."""
    epsilon: Number | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1")
    """The share of wrong results that may be accepted at worst; None leaves it to the grid, 0.002 as a rule."""
    f_bar: Number | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1")
    """The share of work that is assumed to be done by cheats; None leaves it to the grid, 0.2 as a rule."""
    max_replicas: StrictInt = Field(default=5, ge=1, le=25, description="a whole number from 1 to 25")

    def replicas(self, *, audited: bool) -> int:
        """How many agreeing reports a unit needs; `audited` units are replayed in part by the grid itself."""
        return self.min_replicas or (1 if audited else 2)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas is None and self.max_replicas < self.replicas(audited=False):
            raise contradiction("max_replicas", "at least 2 unless min_replicas is 1", self.max_replicas)
        if self.min_replicas is not None and self.min_replicas > self.max_replicas:
            raise contradiction("min_replicas", f"at most max_replicas ({self.max_replicas})", self.min_replicas)
        return self


class Budget(Part):
    """What a campaign may cost; when either is spent, training ends where it is."""

    device_hours: Number | None = Field(default=None, gt=0, description="hours above 0")
    deadline: AwareDatetime | None = Field(
        default=None, description="a moment with its time zone such as 2027-01-31T18:00:00Z"
    )


class CampaignFile(Part):
    """A campaign as its operator wrote it.

    >>> campaign = CampaignFile.parse(b'''
    ... name: handbook
    ... model: models/smollm2-135m-instruct
    ... recipe: activation
    ... sources: [{path: "docs/*.md"}]
    ... publish: {namespace: handbook, version: "1.0.0", licence: CC-BY-4.0}
    ... ''', where="campaign.yaml")
    >>> campaign.activation.layout, campaign.distill.train.total_steps
    (<LayoutKind.CHAINED: 'chained'>, 64)
    >>> CampaignFile.from_bytes(campaign.to_bytes()) == campaign
    True
    """

    name: Name = Field(description=_NAME_FORM)
    model: Model = Field(description="a model of the pool (models/<name>[:<tag>]) or a folder (./… or /…)")
    recipe: Literal["activation", "distill"] = Field(description="activation or distill")
    sources: tuple[SourcePattern, ...] = Field(
        min_length=1, max_length=1000, description="a list of at least one source"
    )
    activation: ActivationParameters = Field(default=ActivationParameters(), description="a mapping")
    distill: DistillParameters = Field(default=DistillParameters(), description="a mapping")
    publish: Publication = Field(description="a mapping with namespace, version and licence")
    trust: Trust = Field(default=Trust(), description="a mapping")
    budget: Budget = Field(default=Budget(), description="a mapping")
    priority: StrictInt = Field(default=0, ge=-100, le=100, description="a whole number from -100 to 100")

    @model_validator(mode="after")
    def _one_recipe(self) -> Self:
        other = _OTHER_PARAMETERS[self.recipe]
        if getattr(self, other) != type(self).model_fields[other].default:
            raise contradiction(other, f"nothing with recipe {self.recipe}", "a mapping")
        return self

    @property
    def model_is_folder(self) -> bool:
        """Whether the model lies on the operator's machine and has yet to be pushed."""
        return _is_folder(self.model)

    @staticmethod
    def load(path: Path) -> CampaignFile:
        """Read a file; raises InvalidError with one line for each problem."""
        try:
            if path.stat().st_size > CAMPAIGN_BYTES_MAX:
                raise InvalidError(
                    f"{path}: expected at most {CAMPAIGN_BYTES_MAX} bytes; name sources, don't paste them"
                )
            content = path.read_bytes()
        except OSError as error:
            raise InvalidError(f"{path}: expected a campaign file, found: {error.strerror}") from None
        return CampaignFile.parse(content, where=path.name)

    @staticmethod
    def parse(content: bytes, *, where: str) -> CampaignFile:
        """The campaign in some YAML; `where` begins every line of an error."""
        try:
            value = yaml.safe_load(content)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise InvalidError(f"{where}: expected YAML, found: {_on_one_line(error)}") from None
        return _validated(value, where)

    @staticmethod
    def from_bytes(content: bytes) -> CampaignFile:
        """The inverse of `to_bytes`, for what came over the wire; raises InvalidError."""
        if len(content) > CAMPAIGN_BYTES_MAX:
            raise InvalidError(f"campaign: expected at most {CAMPAIGN_BYTES_MAX} bytes, found {len(content)}")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidError(f"campaign: expected JSON, found: {_on_one_line(error)}") from None
        return _validated(value, "campaign")

    def to_bytes(self) -> bytes:
        """Canonical JSON with every default of its recipe spelt out: what is submitted."""
        return canonical_json(self.model_dump(mode="json", exclude={_OTHER_PARAMETERS[self.recipe]}))


def _validated(value: Any, where: str) -> CampaignFile:
    if not isinstance(value, dict):
        raise InvalidError(f"{where}: expected a mapping with name, model, recipe …, found {type(value).__name__}")
    try:
        return CampaignFile.model_validate(value)
    except ValidationError as error:
        raise InvalidError("\n".join(f"{where}: {line}" for line in problems_of(error, CampaignFile))) from None


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
