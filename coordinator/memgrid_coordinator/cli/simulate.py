"""`memgrid simulate`: what the rules of trust are worth, and cost, on a grid of virtual hosts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

MAX_PROCESSES = 64


def simulate(
    scenario_file: Annotated[Path, typer.Argument(metavar="SCENARIO", help="Who takes part, and what is computed.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.", show_default=False)
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Draw into this folder, as SVG.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's.", show_default=False)] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_PROCESSES, help="How many; the figures don't depend on it.", show_default="cores"
        ),
    ] = None,
) -> None:
    """Simulate a grid: how much wrong is accepted under which policy, at what cost, how soon cheats are caught."""
    from rich.console import Console
    from rich.progress import Progress

    from memgrid_coordinator.simulation.figures import figures
    from memgrid_coordinator.simulation.running import parts_of, simulate
    from memgrid_coordinator.simulation.scenario import Scenario
    from memgrid_coordinator.simulation.table import show

    scenario = Scenario.load(scenario_file)
    if seed is not None:
        scenario = scenario.model_copy(update={"seed": seed})
    parts = len(parts_of(scenario))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(scenario.name, total=parts)
        tallies = simulate(
            scenario,
            processes=min(processes or os.cpu_count() or 1, parts, MAX_PROCESSES),
            on_part=lambda part: progress.advance(task),
        )
    found = figures(scenario, tallies)
    show(scenario, found, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    if plots is not None:
        from memgrid_coordinator.simulation.pictures import pictures

        plots.mkdir(parents=True, exist_ok=True)
        for name, svg in pictures(found).items():
            (plots / name).write_bytes(svg)
