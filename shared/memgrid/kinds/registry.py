"""From a spec to what the grid knows of its kind."""

from __future__ import annotations

from typing import Any

from memgrid.kinds.evaluate import EvaluateKind
from memgrid.kinds.kind import UnitKind
from memgrid.kinds.prefill_kind import PrefillKind
from memgrid.kinds.study import StudyKind
from memgrid.kinds.train import TrainKind
from memgrid.specs import EvaluateSpec, PrefillSpec, Spec, StudySpec, TrainSpec

_KINDS: dict[str, UnitKind[Any]] = {
    PrefillSpec.kind: PrefillKind(),
    StudySpec.kind: StudyKind(),
    TrainSpec.kind: TrainKind(),
    EvaluateSpec.kind: EvaluateKind(),
}


def kind_of(spec: Spec) -> UnitKind[Any]:
    """The kind of a spec.

    >>> from memgrid.digest import digest_of
    >>> from memgrid.units import ComputeDtype, StoreDtype
    >>> spec = PrefillSpec(model=digest_of(b"m"), tokens=digest_of(b"t"), token_count=256, start=0, parent=None,
    ...     compute_dtype=ComputeDtype.AUTO, store_dtype=StoreDtype.BFLOAT16)
    >>> [file.name for file in kind_of(spec).inputs(spec)]
    ['tokens.bin']
    """
    return _KINDS[spec.kind]


def kind_named(name: str) -> UnitKind[Any]:
    """The kind that specs and units call so, where nothing else of the spec matters.

    >>> kind_named("study").is_audited
    True
    """
    return _KINDS[name]
