"""What the page is told, as JSON: texts are ready to be read, so that the script only puts them in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from urllib.parse import quote

from memgrid.text import flops_text, seconds_text
from memgrid_volunteer.done import DoneUnit, Fate, Outcome
from memgrid_volunteer.glance import Glance
from memgrid_volunteer.grid_view import GridView
from memgrid_volunteer.tiles import Asked, tiles
from memgrid_volunteer.view import Tone, past_text

UNITS_PAGE = 12


_TONES = {
    Outcome.ACCEPTED: Tone.GOOD,
    Outcome.AWAITING: Tone.BUSY,
    Outcome.REJECTED: Tone.BAD,
    Outcome.REFUSED: Tone.BAD,
}
_OUTCOMES = {Outcome.AWAITING: "being checked", Outcome.GIVEN_BACK: "given back", Outcome.REFUSED: "turned down"}


def status_facts(
    glance: Glance, asked: Mapping[str, Asked], grids: Sequence[GridView], newest: int
) -> dict[str, Any]:
    """How things stand now; when `version` changes, history and credit have changed."""
    tally = glance.status.tally
    return {
        "label": glance.label,
        "grids": [asdict(grid) for grid in grids],
        "view": asdict(glance.view),
        "tiles": [asdict(tile) for tile in tiles(glance, asked)],
        "preset": glance.preset,
        "problems": glance.problems,
        "isolation": glance.status.isolation,
        "version": [newest, tally.accepted, tally.rejected, tally.cancelled],
    }


def history_facts(units: Sequence[DoneUnit], now: datetime) -> dict[str, Any]:
    """A page of units; `more` asks for the next, and is None after the last."""
    more = units[-1].number if len(units) == UNITS_PAGE else None
    return {"units": [_unit_facts(unit, now) for unit in units], "more": more}


def _unit_facts(unit: DoneUnit, now: datetime) -> dict[str, Any]:
    speed = [f"{unit.tokens_per_s:,.0f} tokens/s"] if unit.tokens_per_s else []
    if unit.utilisation is not None:
        speed.append(f"{unit.utilisation:.0%} of the device")
    return {
        "number": unit.number,
        "at": past_text(unit.at, now),
        "moment": unit.at.isoformat(timespec="seconds"),
        "key": unit.unit_key,
        "work": unit.work or "not begun",
        "kind": unit.kind,
        "device": unit.device_id,
        "grid": unit.grid,
        "outcome": _OUTCOMES.get(unit.outcome, unit.outcome.value),
        "tone": _TONES.get(unit.outcome, Tone.QUIET),
        "reason": "" if unit.outcome is Outcome.ACCEPTED else unit.reason,
        "took": seconds_text(unit.compute_s) if unit.compute_s else "",
        "speed": ", ".join(speed),
        "credit": flops_text(unit.credit_flops) if unit.credit_flops else "",
        "became": [_fate_facts(fate, unit.grid) for fate in unit.fate] if unit.outcome is Outcome.ACCEPTED else [],
    }


def _fate_facts(fate: Fate, grid: str) -> dict[str, str]:
    if fate.cube:
        return {"text": fate.cube, "href": f"{grid}/cubes/{quote(fate.cube, safe='/:')}"}
    return {"text": f"for {fate.campaign}", "href": f"{grid}/campaigns/{quote(fate.campaign_id, safe='')}"}
