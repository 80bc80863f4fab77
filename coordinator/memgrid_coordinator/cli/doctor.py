"""`memgrid coordinator doctor`: everything that one would be asked about a grid that is not well."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memgrid.cli.options import JsonOption, print_json
from memgrid.clock import SystemClock
from memgrid.findings import lines_of
from memgrid_coordinator.cli.opening import BlobsOption, DatabaseOption, DataOption, existing


def doctor(
    data: DataOption,
    thorough: Annotated[bool, typer.Option("--thorough", help="Read the whole database for damage.")] = False,
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine a grid, running or not, and say what to do; shows no secret. Fails if something is bad."""
    from memgrid_coordinator.services.examining import examine

    settings = existing(data, database, blobs)
    found = []
    for finding in examine(settings, SystemClock(), thoroughly=thorough):
        found.append(finding)
        if not as_json:
            typer.echo("\n".join(lines_of(finding)))
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.level.value == "bad" for finding in found):
        raise typer.Exit(1)
