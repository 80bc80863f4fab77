"""`memgrid volunteer grids` and `share`: the grids of this machine, and how it is shared among them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from memgrid.clock import SystemClock
from memgrid_volunteer.glance import Glancing
from memgrid_volunteer.grid_view import GridView
from memgrid_volunteer.history import History
from memgrid_volunteer.home import Home, default_home
from memgrid_volunteer.places import checked_share

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The volunteer's own folder.", envvar="MEMGRID_VOLUNTEER_HOME")
]
GridArgument = Annotated[str, typer.Argument(help="A grid that was joined: its name or its address.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `memgrid volunteer`."""
    app.command()(grids)
    app.command()(share)


def grids(
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """List the grids that were joined, with their shares and what each got of this machine lately."""
    views = views_of(Home(home or default_home()), SystemClock().now())
    typer.echo(json.dumps([asdict(view) for view in views], indent=1) if as_json else "\n".join(map(in_words, views)))


def share(
    grid: GridArgument,
    wanted: Annotated[int, typer.Argument(help="A whole number; 0: only what no other grid has work for.")],
    home: HomeOption = None,
) -> None:
    """Say how much of this machine's time a grid gets beside the others, from now on."""
    place = Home(home or default_home())
    place.find(grid).give_share(checked_share(wanted))
    for view in views_of(place, SystemClock().now()):
        typer.echo(f"{view.name}: share {view.share}, {view.part}")


def views_of(home: Home, now: datetime) -> tuple[GridView, ...]:
    """Raises InvalidError when no grid has been joined."""
    glance = Glancing(home).glance(now)
    with contextlib.closing(History(home.folder)) as history:
        return glance.grids(history, now)


def in_words(view: GridView) -> str:
    """What `grids` and `status` print of one."""
    why = f": {view.why}" if view.why else ""
    return "\n".join(
        (
            f"{view.label} on {view.name} (host {view.host_id})",
            f"  address    {view.url}",
            f"  share      {view.share}, {view.part}",
            f"  lately     {view.lately}",
            f"  state      {view.state}{why}",
            f"  units      {view.units}, credit {view.credit}, as {view.public_name}",
        )
    )
