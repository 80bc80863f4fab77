"""What both recipes answer to the same question: what follows from everything stored about a document?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from memgrid.campaign import CampaignFile
from memgrid.cube.identity import ModelIdentity
from memgrid.digest import Digest
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.heavy.made_file import MadeFile
from memgrid_coordinator.records import Document, Made, NewUnit, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A document and everything that decides about it. `units` come in the order in which they were asked for."""

    campaign: CampaignFile
    document: Document
    units: tuple[Unit, ...]
    made: Mapping[str, Made]
    base: ModelIdentity
    now: datetime
    spent: Reason | None = None
    """Why nothing more may be spent on the campaign."""
    siblings: Mapping[str, Digest | None] = field(default_factory=dict)
    """By name, the other documents that can still become cubes: their adapters as they start, once made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing follows until a unit has ended, or until a moment."""

    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreUnits:
    """Ask hosts for these."""

    units: tuple[NewUnit, ...]
    why: str
    """In words, for the log that `explain` reads."""


Workshop = Callable[..., Sequence[MadeFile]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something the grid makes itself, on its engine: `function(out=…, files=…, **options)`.

    `files` are content by address, given as paths; what needs the model gets `model_folder` too. A RefusedError is
    the document's end. It may run twice: equal files give equal results.
    """

    name: str
    function: Workshop
    files: Mapping[str, tuple[Digest, ...]]
    options: Mapping[str, Any]
    needs_model: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """All is there: make the cube."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The document becomes no cube."""

    reason: Reason


Step = Wait | MoreUnits | Work | Publish | Failed


def why_unit_failed(unit: Unit) -> Reason:
    """A unit's own reason, with where to read more."""
    code = ReasonCode.OTHER if unit.reason is None else unit.reason.code
    text = "it failed" if unit.reason is None or not unit.reason.text else unit.reason.text
    return Reason(code=code, text=f"{unit.kind} unit {unit.key[:12]}: {text}; see memgrid explain {unit.key[:12]}")
