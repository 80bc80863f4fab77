"""`memgrid volunteer page` and `top`: look at a volunteer, in a browser or in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memgrid.clock import SystemClock
from memgrid.errors import InvalidError
from memgrid_volunteer.home import Home, default_home
from memgrid_volunteer.page.key import PageKey, read_key

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The volunteer's own folder.", envvar="MEMGRID_VOLUNTEER_HOME")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `memgrid volunteer`."""
    app.command()(page)
    app.command()(top)


def page(
    home: HomeOption = None,
    is_printed: Annotated[
        bool, typer.Option("--print", help="Only print the address; whoever has it is let in.")
    ] = False,
) -> None:
    """Open the running volunteer's own page in the browser."""
    place = Home(home or default_home())
    place.joined()
    key = open_page(place)
    if key is None:
        raise InvalidError(f"{place.folder}: no page is open here; memgrid volunteer run opens one")
    if is_printed or typer.launch(key.ticket_url(SystemClock().now())) != 0:
        typer.echo(key.url)


def top(
    home: HomeOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print how things stand now, and end.")] = False,
) -> None:
    """Watch the volunteer in this terminal: p pauses, r resumes, q ends."""
    import asyncio

    from rich.console import Console

    from memgrid.log import configure_logging
    from memgrid_volunteer.top import run_top

    configure_logging(level="ERROR")
    try:
        asyncio.run(run_top(Home(home or default_home()), SystemClock(), Console(highlight=False), once=once))
    except KeyboardInterrupt:
        raise typer.Exit from None


def open_page(home: Home) -> PageKey | None:
    """The key of the page that is served from a home now; None when none is."""
    key = read_key(home.folder)
    return key if key is not None and key.is_open and home.is_running else None
