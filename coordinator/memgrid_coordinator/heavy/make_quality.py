"""How good an adapter is, from the scores of all held-out conversations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from memgrid.kinds.evaluate import summarise
from memgrid.specs import EvaluateSpec
from memgrid_coordinator.heavy.made_file import Files, MadeFile


def make_quality(*, out: Path, files: Files, specs: tuple[bytes, ...]) -> tuple[MadeFile, ...]:
    """The sums over `scores`, one file for each of `specs`, in order; raises InvalidError when there are none."""
    quality = summarise((path.read_bytes() for path in files["scores"]), map(EvaluateSpec.from_bytes, specs))
    return (MadeFile(name="quality", detail=asdict(quality)),)
