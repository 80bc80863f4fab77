"""Measure memgrid on this machine: tables for people, JSON for machines, no verdicts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")
# Hosts of a benchmark have no time to earn trust, and their load should be what was asked for.
os.environ.update(MEMGRID_TRUST_HELD_AT_FIRST="64", MEMGRID_CANARY_SHARE="0")

NAMES = ("lifecycle", "attach", "worker", "startup", "idle", "stream", "blobs", "crowd", "engine", "sketch")
LONG = (
    *("scale", "polls", "planning", "peers"),
    *("distill", "distill_rounds", "distill_checks", "distill_compose", "train_speed", "check_cost", "calibration"),
    "owner",
    "preemption",
)
"""Minutes to an hour each on two cores: they run when named, and with `all`."""
ALL = "all"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which to run: by default {', '.join(NAMES)}; also {', '.join(LONG)}, and {ALL}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: to see whether it runs")
    arguments = parser.parse_args()
    known = (*NAMES, *LONG, ALL)
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: expected {', '.join(known)}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    from benchmarks.report import machine

    figures: dict[str, Any] = {"machine": machine()}
    wanted = (*NAMES, *LONG) if ALL in arguments.names else arguments.names or NAMES
    for name in wanted:
        report = import_module(f"benchmarks.{name}").run(console, arguments.quick)
        console.print(report.table())
        console.print()
        figures[name] = report.to_json()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
