"""Show memgrid whole on one machine: volunteers, cheats that are caught, cubes, and what a reader of one gains."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from demonstration.first_act import first_act
from demonstration.grid import CHEAT, running_grid
from demonstration.processes import DemoError
from demonstration.reading import load
from demonstration.second_act import second_act
from demonstration.steps import Steps
from rich.console import Console

from memgrid import MemgridError

MODEL = Path(__file__).resolve().parent.parent / ".cache" / "models" / "smollm2-135m-instruct"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the facts here, for machines")
    parser.add_argument("--quick", action="store_true", help="train less: every stage is shown, but the cube is poor")
    parser.add_argument("--first-act", action="store_true", help="end before the training")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    # The libraries' own progress bars would draw over ours.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    try:
        with tempfile.TemporaryDirectory(prefix="memgrid-demo-", ignore_cleanup_errors=True) as folder:
            facts = demonstrate(Path(folder), console, is_quick=arguments.quick, is_whole=not arguments.first_act)
    except (DemoError, MemgridError) as error:
        console.print(f"[red]the demo failed:[/red] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


def demonstrate(folder: Path, console: Console, *, is_quick: bool, is_whole: bool) -> dict[str, Any]:
    step = Steps(console)
    step(f"a grid: a coordinator and three volunteers, all processes of their own; {CHEAT} will cheat")
    with running_grid(folder) as grid:
        model, tokenizer = load(MODEL)
        facts = first_act(grid, MODEL, model, tokenizer, step, console)
        if is_whole:
            facts["distilled"] = second_act(grid, model, tokenizer, step, console, is_quick=is_quick)
    return facts | {"took_s": step.took_s()}


if __name__ == "__main__":
    sys.exit(main())
