"""Merge what the members of a round moved its parameters by."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from memgrid.campaign_distill import Rounds
from memgrid.specs import AdapterSpec
from memgrid.units import UnitKey
from memgrid_coordinator.heavy.made_file import Files, MadeFile


def make_merge(
    *,
    out: Path,
    files: Files,
    name: str,
    velocity_name: str,
    adapter: AdapterSpec,
    rule: Rounds,
    keys: tuple[UnitKey, ...],
) -> tuple[MadeFile, ...]:
    """The state of the next round, and the velocity for its merge, which stays here.

    `states` were trained from `bases`, one each; `keys` are their units'. `velocity` is the former merge's, if any.
    """
    from memgrid.distill.aggregate import Merged, merge

    (base,) = files["base"]
    before = next(iter(files["velocity"]), None)
    into = Merged(state=out / "state.safetensors", velocity=out / "velocity.safetensors")
    report = merge(base, files["states"], files["bases"], rule, adapter, into, velocity=before)
    return (
        MadeFile(name=name, path=into.state, detail={"used": list(keys), **asdict(report)}),
        MadeFile(name=velocity_name, path=into.velocity),
    )
