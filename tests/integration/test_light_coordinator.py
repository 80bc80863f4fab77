"""A coordinator without torch, Ray and their company hosts what it can, and refuses the rest in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from memgrid.errors import InvalidError
from memgrid_coordinator.heavy.plan_distill import StudyParameters, plan_distill

LEFT_OUT = ("accelerate", "matplotlib", "peft", "ray", "torch")


def test_it_is_built_without_them() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({LEFT_OUT!r})); import memgrid_coordinator.app;"
        "from transformers import AutoTokenizer; print('built')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "built\n", done.stderr


def test_a_distillation_is_refused_before_anything_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", cast(Any, None))
    with pytest.raises(InvalidError, match="recipe: expected activation, found distill"):
        plan_distill([], Path("nowhere"), cast(Any, None), StudyParameters(chunk_tokens=512, answer_room=64))
