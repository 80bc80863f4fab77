"""The first act: texts are read once and for all, a cheat is caught, and a reader saves the reading."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from demonstration.grid import CHEAT, HONEST, SCRIPTS, Grid
from demonstration.processes import DemoError
from demonstration.reading import Reading, read_both_ways
from demonstration.steps import Steps
from demonstration.table import summary_table
from memgrid import MemCube, Pool
from memgrid.text import bytes_text

CAMPAIGN = SCRIPTS / "demonstration" / "campaign.yaml"
DOCUMENTS = ("why.md", "quickstart.md", "page.md")
SHOWN_CUBE = "memgrid-docs/why"
QUESTION = "How many kilobytes does a token of SmolLM2-135M take in bfloat16?"


def first_act(
    grid: Grid, model_folder: Path, model: Any, tokenizer: Any, step: Steps, console: Console
) -> dict[str, Any]:
    """What it showed, for machines; raises DemoError when it did not show what it promises."""
    with ThreadPoolExecutor(1) as background:
        arriving = background.submit(grid.bring_volunteers, *HONEST, CHEAT)
        console.print(grid.operator("model", "push", str(model_folder), model_folder.name).rstrip(), soft_wrap=True)
        step("the operator submits the project's documentation as a campaign, and watches it")
        campaign_id = _submit(grid)
        arriving.result()
    campaign = json.loads(grid.operator("campaign", "watch", campaign_id, "--json", show=True))
    rejections = _check_outcome(grid, campaign)
    console.print(f"caught: {len(rejections)} reports of {CHEAT}, none of the others. The first:")
    console.print(f"  [red]{rejections[0]['text']}[/red]", soft_wrap=True)
    # A reader has a machine of its own: ours should not be busy computing for others.
    grid.send_home()
    step("a consumer searches, pulls, verifies, attaches and asks")
    cube = _fetch_cube(grid, console)
    reading = read_both_ways(model, tokenizer, cube, QUESTION)
    for name, text in (
        ("question", QUESTION),
        ("with the cube", reading.answer),
        ("without the text", reading.answer_without_text),
    ):
        console.print(f"[bold]{name:16}[/bold] {text}")
    facts = _facts(campaign, rejections, cube, reading)
    console.print()
    console.print(summary_table(facts))
    return facts


def _submit(grid: Grid) -> str:
    """Submit the campaign as an operator would; its id."""
    place = grid.folder / "handbook"
    (place / "docs").mkdir(parents=True)
    shutil.copy(CAMPAIGN, place)
    for name in DOCUMENTS:
        shutil.copy(SCRIPTS.parent / "docs" / name, place / "docs")
    answer = grid.operator("campaign", "submit", str(place / CAMPAIGN.name), "--json", show=True)
    campaign_id: str = json.loads(answer)["campaign_id"]
    return campaign_id


def _check_outcome(grid: Grid, campaign: dict[str, Any]) -> list[dict[str, str]]:
    """The rejected reports; raises DemoError unless all cubes are there and the cheat alone was caught."""
    unpublished = [each["name"] for each in campaign["documents"] if each["state"] != "published"]
    if unpublished:
        raise DemoError(f"no cube for: {', '.join(unpublished)}")
    rejections = grid.rejections()
    blamed = {rejection["volunteer"] for rejection in rejections}
    if blamed != {CHEAT}:
        raise DemoError(f"expected reports of {CHEAT} alone to be rejected, found: {', '.join(blamed) or 'none'}")
    return rejections


def _fetch_cube(grid: Grid, console: Console) -> MemCube:
    os.environ["MEMGRID_HOME"] = str(grid.consumer_home)
    console.print(grid.consumer("search", "memgrid").rstrip(), soft_wrap=True)
    with Pool(grid.url, cache=grid.folder / "consumer-cache") as pool:
        cube = pool.pull(SHOWN_CUBE)
        checked = pool.verify(SHOWN_CUBE)
    size = bytes_text(checked.size_bytes)
    console.print(f"pulled and verified {SHOWN_CUBE}: {checked.files} files, {size}, signed by the grid's key")
    return cube


def _facts(
    campaign: dict[str, Any], rejections: list[dict[str, str]], cube: MemCube, reading: Reading
) -> dict[str, Any]:
    """What scripts and people want to compare from one run to the next."""
    info = cube.info()
    return {
        "cubes_published": len(campaign["documents"]),
        "documents": [{key: each[key] for key in ("name", "tokens", "cube")} for each in campaign["documents"]],
        "tokens": campaign["tokens"],
        "reports_rejected": rejections,
        "cube": f"{info.name}:{info.version}",
        "cube_tokens": reading.tokens,
        "cube_bytes": info.bytes,
        "question": QUESTION,
        "answer": reading.answer,
        "answer_without_text": reading.answer_without_text,
        "ttft_prefill_s": reading.ttft_prefill_s,
        "ttft_cube_s": reading.ttft_cube_s,
        "kl_to_full_text": reading.kl_to_full_text,
        "kl_without_text": reading.kl_without_text,
        "top1_agrees": reading.top1_agrees,
        "produced_flops": campaign["produced_flops"],
        "spent_flops": campaign["spent_flops"],
        "saved_flops": info.saved_flops,
    }
