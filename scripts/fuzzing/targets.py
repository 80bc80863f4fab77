"""Every target by name."""

from __future__ import annotations

from functools import cache

from fuzzing import documents, http, messages, tensors
from fuzzing.driver import Target


@cache
def every() -> dict[str, Target]:
    targets = (*messages.targets(), *documents.targets(), *tensors.targets(), *http.targets())
    found = {target.name: target for target in targets}
    assert len(found) == len(targets), "two targets have one name"
    return found
