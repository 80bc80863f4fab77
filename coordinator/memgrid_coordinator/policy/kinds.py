"""What a stored unit asks and what its kind says of it; specs never change, so each is parsed once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from memgrid.kinds.kind import UnitKind
from memgrid.kinds.registry import kind_of
from memgrid.specs import EvaluateSpec, Spec, parse_spec


@lru_cache(maxsize=4096)
def spec_in(content: bytes) -> Spec:
    """The spec that was stored; raises InvalidError for one of no release known here."""
    return parse_spec(content)


def kind_in(content: bytes) -> tuple[Spec, UnitKind[Any]]:
    """The spec, and what the grid knows of its kind."""
    spec = spec_in(content)
    return spec, kind_of(spec)


def is_always_audited(spec: Spec, min_replicas: int) -> bool:
    """Whether a part of every answer is replayed: where its kind says so, and scores that nobody else computed.

    What follows from these can't be taken back: a round that was merged, a start that was made, a figure that was
    published.
    """
    return kind_of(spec).is_audited or (isinstance(spec, EvaluateSpec) and min_replicas < 2)


def is_adaptive(spec: Spec, min_replicas: int) -> bool:
    """Whether the record of its host decides how an answer is checked: one computes it, and nobody always looks."""
    return min_replicas < 2 and not is_always_audited(spec, min_replicas)
