"""Two hosts differ, each with an answer of its own: the arbiter computes the piece again and says who is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from memgrid.distill.audit import audit
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.part import Part
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import Spec
from memgrid.units import ComputeDtype

_ORDER = {Zone.PASS: 0, Zone.SUSPICIOUS: 1, Zone.FAULT: 2}
_DRAW = bytes(32)
"""Nothing is drawn: the part says what to compute."""


class Right(StrEnum):
    """Whose answer stands. Tolerance is not transitive: two may differ, and yet both be near enough to the truth."""

    ONE = "one"
    OTHER = "other"
    BOTH = "both"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a host handed in for the part: its files by the unit's names, and what it says it computed in."""

    files: Mapping[str, Path]
    compute_dtype: ComputeDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Who is right, with both audits as evidence."""

    right: Right
    one: Audit
    other: Audit


def decide(
    spec: Spec,
    one: Answer,
    other: Answer,
    part: Part,
    *,
    model_folder: Path,
    inputs: Mapping[str, Path],
    tolerances: Tolerances,
) -> Decision:
    """Compute the part again for each of the two, in float32 on the CPU.

    Each is judged on what itself claims before the part: up to there the two agree, by the way the part was found.
    """
    first, second = (
        audit(
            spec,
            model_folder=model_folder,
            inputs=inputs,
            files=answer.files,
            compute_dtype=answer.compute_dtype,
            draw=_DRAW,
            tolerances=tolerances,
            part=part,
        )
        for answer in (one, other)
    )
    return Decision(right=who_is_right(first.zone, second.zone), one=first, other=second)


def who_is_right(one: Zone, other: Zone) -> Right:
    """The one in the better zone; equals stand or fall together.

    >>> [str(who_is_right(Zone.PASS, other)) for other in Zone]
    ['both', 'one', 'one']
    >>> str(who_is_right(Zone.FAULT, Zone.FAULT))
    'neither'
    """
    if one is other:
        return Right.NEITHER if one is Zone.FAULT else Right.BOTH
    return Right.ONE if _ORDER[one] < _ORDER[other] else Right.OTHER
