"""Show memgrid whole on one machine: volunteers, a cheat that is caught, cubes, and what a reader of one gains."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from demonstration.grid import CHEAT, Grid, running_grid
from demonstration.processes import DemoError
from demonstration.reading import Reading, load, read_both_ways
from demonstration.table import summary_table
from rich.console import Console

from memgrid import MemCube, MemgridError, Pool
from memgrid.text import bytes_text

ROOT = Path(__file__).resolve().parent.parent
CAMPAIGN = Path(__file__).resolve().parent / "demonstration" / "campaign.yaml"
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
SHOWN_CUBE = "memgrid-docs/why"
QUESTION = "How many kilobytes does a token of SmolLM2-135M take in bfloat16?"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the facts here, for machines")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    # The libraries' own progress bars would draw over ours.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    try:
        with tempfile.TemporaryDirectory(prefix="memgrid-demo-", ignore_cleanup_errors=True) as folder:
            facts = demonstrate(Path(folder), console)
    except (DemoError, MemgridError) as error:
        console.print(f"[red]the demo failed:[/red] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


def demonstrate(folder: Path, console: Console) -> dict[str, Any]:
    step = Steps(console)
    step(f"a grid: a coordinator and three volunteers, all processes of their own; {CHEAT} will cheat")
    with running_grid(folder) as grid:
        with ThreadPoolExecutor(1) as background:
            arriving = background.submit(grid.bring_volunteers)
            console.print(grid.operator("model", "push", str(MODEL), MODEL.name).rstrip(), soft_wrap=True)
            step("the operator submits the project's documentation as a campaign, and watches it")
            campaign_id = submit(grid, folder)
            arriving.result()
        campaign = json.loads(grid.operator("campaign", "watch", campaign_id, "--json", show=True))
        rejections = check_outcome(grid, campaign)
        console.print(f"caught: {len(rejections)} reports of {CHEAT}, none of the others. The first:")
        console.print(f"  [red]{rejections[0]['text']}[/red]", soft_wrap=True)
        # A reader has a machine of its own: ours should not be busy computing for others.
        grid.send_volunteers_home()
        step("a consumer searches, pulls, verifies, attaches and asks")
        cube = fetch_cube(grid, console)
        reading = ask(cube, console)
    facts = facts_of(campaign, rejections, cube, reading) | {"took_s": step.took_s()}
    console.print()
    console.print(summary_table(facts))
    return facts


class Steps:
    """Numbered headings, and how long it has been."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0
        self._began_s = time.monotonic()

    def __call__(self, text: str) -> None:
        self._number += 1
        self._console.print(
            f"\n[bold]{self._number}  {text}[/bold] [dim]({self.took_s():.0f} s)[/dim]", soft_wrap=True
        )

    def took_s(self) -> float:
        return time.monotonic() - self._began_s


def submit(grid: Grid, folder: Path) -> str:
    """Submit the campaign as an operator would; its id."""
    place = folder / "handbook"
    place.mkdir()
    shutil.copy(CAMPAIGN, place)
    shutil.copytree(ROOT / "docs", place / "docs")
    answer = grid.operator("campaign", "submit", str(place / CAMPAIGN.name), "--json", show=True)
    campaign_id: str = json.loads(answer)["campaign_id"]
    return campaign_id


def check_outcome(grid: Grid, campaign: dict[str, Any]) -> list[dict[str, str]]:
    """The rejected reports; raises DemoError unless all cubes are there and the cheat alone was caught."""
    unpublished = [each["name"] for each in campaign["documents"] if each["state"] != "published"]
    if unpublished:
        raise DemoError(f"no cube for: {', '.join(unpublished)}")
    rejections = [
        {"volunteer": name, "host": host, "reason": event["reason"], "text": event["text"]}
        for host, name in grid.hosts.items()
        for event in grid.story(host)["events"]
        if event["name"] == "report_rejected"
    ]
    blamed = {rejection["volunteer"] for rejection in rejections}
    if blamed != {CHEAT}:
        raise DemoError(f"expected reports of {CHEAT} alone to be rejected, found: {', '.join(blamed) or 'none'}")
    return rejections


def fetch_cube(grid: Grid, console: Console) -> MemCube:
    os.environ["MEMGRID_HOME"] = str(grid.consumer_home)
    console.print(grid.consumer("search", "memgrid").rstrip(), soft_wrap=True)
    with Pool(grid.url, cache=grid.folder / "consumer-cache") as pool:
        cube = pool.pull(SHOWN_CUBE)
        checked = pool.verify(SHOWN_CUBE)
    size = bytes_text(checked.size_bytes)
    console.print(f"pulled and verified {SHOWN_CUBE}: {checked.files} files, {size}, signed by the grid's key")
    return cube


def ask(cube: MemCube, console: Console) -> Reading:
    model, tokenizer = load(MODEL)
    reading = read_both_ways(model, tokenizer, cube, QUESTION)
    console.print(f"[bold]question        [/bold] {QUESTION}")
    console.print(f"[bold]with the cube   [/bold] {reading.answer}")
    console.print(f"[bold]without the text[/bold] {reading.answer_without_text}")
    return reading


def facts_of(
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


if __name__ == "__main__":
    sys.exit(main())
