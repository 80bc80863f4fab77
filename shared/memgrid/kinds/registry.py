"""From a spec to what the grid knows of its kind."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from memgrid.kinds.kind import UnitKind
from memgrid.specs import EvaluateSpec, PrefillSpec, Spec, StudySpec, TrainSpec

_HOMES: dict[str, tuple[str, str]] = {
    PrefillSpec.kind: ("memgrid.kinds.prefill_kind", "PrefillKind"),
    StudySpec.kind: ("memgrid.kinds.study", "StudyKind"),
    TrainSpec.kind: ("memgrid.kinds.train", "TrainKind"),
    EvaluateSpec.kind: ("memgrid.kinds.evaluate", "EvaluateKind"),
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
    return _kind(spec.kind)


@cache
def _kind(name: str) -> UnitKind[Any]:
    module, kind = _HOMES[name]
    made: UnitKind[Any] = getattr(import_module(module), kind)()
    return made
