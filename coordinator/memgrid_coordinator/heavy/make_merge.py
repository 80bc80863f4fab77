"""Merge what the members of a round moved their state by."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from memgrid.campaign_distill import Rounds
from memgrid.specs import AdapterSpec
from memgrid.units import UnitKey
from memgrid_coordinator.heavy.made_file import Files, MadeFile


def make_merge(
    *, out: Path, files: Files, name: str, adapter: AdapterSpec, rule: Rounds, keys: tuple[UnitKey, ...]
) -> tuple[MadeFile, ...]:
    """The state of the next round. `states` were trained from `bases`, one each; `keys` are their units'."""
    from memgrid.distill.aggregate import merge

    (base,) = files["base"]
    state = out / "state.safetensors"
    report = merge(base, files["states"], files["bases"], rule, adapter, state)
    return (MadeFile(name=name, path=state, detail={"used": list(keys), **asdict(report)}),)
