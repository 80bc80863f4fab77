"""Feed the parsers of strangers' bytes what strangers may send, and keep what they fall over."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzzing.driver import Outcome, execute, fuzz  # noqa: E402
from fuzzing.targets import every  # noqa: E402

FOUND = ROOT / ".cache" / "fuzz"
"""Where input that broke a contract is put, one file each."""
SLOW_S = 5.0
"""No target takes a hundredth of it, on a machine that does nothing else."""
GROWN_BYTES_MAX = 256 << 20


def main() -> int:
    targets = every()
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(targets)}")
    parser.add_argument("--executions", type=int, metavar="N", help="of each target; by default as many as it says")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same gives the same input")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--coverage", action="store_true", help="one target, guided by coverage, with atheris")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in targets]:
        parser.error(f"unknown target {unknown[0]!r}: expected {', '.join(targets)}")
    names = arguments.names or list(targets)
    if arguments.coverage:
        from fuzzing.coverage import fuzz_by_coverage

        if len(names) != 1:
            parser.error("--coverage takes one target")
        return fuzz_by_coverage(targets[names[0]], executions=arguments.executions, seed=arguments.seed, found=FOUND)
    return run(names, arguments.executions, arguments.seed, arguments.json)


def run(names: list[str], executions: int | None, seed: int, json_file: Path | None) -> int:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("target", "executions", "a second", "accepted", "ways to say no", "slowest", "grown", "broken")
    figures, broken = {}, 0
    for name in names:
        # A process each: one target's memory is not another's, and what is left over ends with it.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            outcome, seconds = pool.submit(run_one, name, executions, seed).result()
        faults = faults_of(name, outcome)
        broken += len(faults)
        for fault in faults:
            console.print(f"[red]{name}[/red]: {fault}", markup=True, highlight=False)
        figures[name] = {
            "executions": outcome.executions,
            "seconds": round(seconds, 1),
            "accepted": outcome.accepted,
            "refusals": len(outcome.refusals),
            "slowest_s": round(outcome.slowest_s, 4),
            "grown_bytes": outcome.grown_bytes,
            "failures": len(outcome.failures),
        }
        table.add_row(
            name,
            f"{outcome.executions:,}",
            f"{outcome.executions / seconds:,.0f}",
            f"{outcome.accepted:,}",
            str(len(outcome.refusals)),
            f"{1e3 * outcome.slowest_s:.0f} ms",
            f"{outcome.grown_bytes >> 20} MiB",
            str(len(faults)),
        )
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if broken else 0


def run_one(name: str, executions: int | None, seed: int) -> tuple[Outcome, float]:
    logging.disable()  # servers tell each refusal
    target = every()[name]
    for content in target.seeds():
        execute(target, content)
    started = time.perf_counter()
    outcome = fuzz(target, executions=executions or target.executions, seed=seed)
    return outcome, time.perf_counter() - started


def faults_of(name: str, outcome: Outcome) -> list[str]:
    """What broke the contract, in words; the input is kept."""
    faults = []
    for number, failure in enumerate(outcome.failures):
        FOUND.mkdir(parents=True, exist_ok=True)
        path = FOUND / f"{name}-{number}"
        path.write_bytes(failure.content)
        faults.append(f"{path}: {failure.fault}")
    if outcome.slowest_s > SLOW_S:
        faults.append(f"one execution took {outcome.slowest_s:.1f} s")
    if outcome.grown_bytes > GROWN_BYTES_MAX:
        faults.append(f"the process grew by {outcome.grown_bytes >> 20} MiB")
    return faults


if __name__ == "__main__":
    sys.exit(main())
