"""The second act: one text is distilled into a small prefix, a lazy trainer is caught, and the model remembers."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from demonstration.answers import Answers, answer_three_ways
from demonstration.grid import CHEAT, HONEST, LAZY, SCRIPTS, Grid
from demonstration.processes import DemoError
from demonstration.steps import Steps
from demonstration.table import distilled_table
from demonstration.trap import leave_training_to_the_cheat
from memgrid import MemCube, Pool

CAMPAIGN = SCRIPTS / "demonstration" / "distil.yaml"
TEXT = SCRIPTS / "demonstration" / "texts" / "skerrow.md"
CUBE = "skerrow/skerrow"
QUESTION = "Where does the Skerrow light stand?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortened:
    """What `--quick` makes of the campaign: too little to be good, enough to see every stage."""

    virtual_tokens: int = 48
    conversations: int = 8
    held_out: int = 4
    steps: int = 8
    steps_per_unit: int = 4
    """Whole segments of two: whichever is replayed, the lazy one has left out a step of it."""
    batch_rows: int = 1


def second_act(
    grid: Grid, model: Any, tokenizer: Any, step: Steps, console: Console, *, is_quick: bool
) -> dict[str, Any]:
    """What it showed, for machines; raises DemoError when it did not show what it promises."""
    place = _write_campaign(grid.folder / "skerrow", is_quick=is_quick)
    step(f"the operator has one text distilled; {LAZY} will skip every second step of the training")
    grid.bring_volunteers(*HONEST, LAZY)
    console.print(grid.operator("campaign", "plan", str(place)).rstrip(), soft_wrap=True)
    campaign_id = json.loads(grid.operator("campaign", "submit", str(place), "--json", show=True))["campaign_id"]
    with ThreadPoolExecutor(1) as background:
        trapped = background.submit(leave_training_to_the_cheat, grid, campaign_id)
        campaign = json.loads(grid.operator("campaign", "watch", campaign_id, "--json", show=True))
        trapped.result()
    rejection = _check_outcome(grid, campaign)
    console.print(f"caught: {LAZY}, whose training was replayed in part by the grid")
    console.print(f"  [red]{rejection['text']}[/red]", soft_wrap=True)
    grid.send_home()
    step("the same question: before, with the text, and with the cube")
    cube = _fetch_cube(grid)
    answers = answer_three_ways(model, tokenizer, cube, TEXT.read_text(), QUESTION)
    for name, text in (
        ("question", QUESTION),
        ("before", answers.without_text),
        ("with the text", answers.with_text),
        ("with the cube", answers.with_cube),
    ):
        console.print(f"[bold]{name:16}[/bold] {text}")
    facts = _facts(campaign, rejection, cube, answers)
    console.print()
    console.print(distilled_table(facts))
    return facts


def _write_campaign(place: Path, *, is_quick: bool) -> Path:
    """The campaign beside its text, as its operator keeps it; where."""
    place.mkdir()
    shutil.copy(TEXT, place)
    campaign = yaml.safe_load(CAMPAIGN.read_text())
    if is_quick:
        distill, less = campaign["distill"], Shortened()
        distill["study"] |= {"conversations": less.conversations, "held_out": less.held_out}
        distill["train"] |= {
            "steps": less.steps,
            "steps_per_unit": less.steps_per_unit,
            "batch_rows": less.batch_rows,
        }
        distill["quality"] = {"min_gap_closed": 0.0}
    written = place / CAMPAIGN.name
    written.write_text(yaml.safe_dump(campaign))
    return written


def _check_outcome(grid: Grid, campaign: dict[str, Any]) -> dict[str, str]:
    """The rejection of the lazy one; raises DemoError unless the cube is there and the lazy one alone was caught."""
    (document,) = campaign["documents"]
    if document["state"] != "published":
        raise DemoError(f"no cube: {document['reason']}")
    rejections = [each for each in grid.rejections() if each["volunteer"] != CHEAT]  # who was caught in the first act
    blamed = {rejection["volunteer"] for rejection in rejections}
    if blamed != {LAZY}:
        raise DemoError(f"expected training of {LAZY} alone to be rejected, found: {', '.join(blamed) or 'none'}")
    return rejections[0]


def _fetch_cube(grid: Grid) -> MemCube:
    with Pool(grid.url, cache=grid.folder / "consumer-cache") as pool:
        cube = pool.pull(CUBE)
        pool.verify(CUBE)
    return cube


def _facts(campaign: dict[str, Any], rejection: dict[str, str], cube: MemCube, answers: Answers) -> dict[str, Any]:
    """What scripts and people want to compare from one run to the next."""
    info = cube.info()
    (document,) = campaign["documents"]
    return {
        "cube": f"{info.name}:{info.version}",
        "adapter": info.adapter,
        "tokens": info.tokens,
        "steps": document["steps"],
        "losses": document["losses"],
        "quality": document["quality"],
        "rejection": rejection,
        "cube_bytes": answers.cube_bytes,
        "text_kv_bytes": answers.text_kv_bytes,
        "question": QUESTION,
        "answer_without_text": answers.without_text,
        "answer_with_text": answers.with_text,
        "answer_with_cube": answers.with_cube,
        "produced_flops": campaign["produced_flops"],
        "spent_flops": campaign["spent_flops"],
        "saved_flops": info.saved_flops,
    }
