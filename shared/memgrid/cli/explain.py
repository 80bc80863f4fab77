"""`memgrid explain`: the story of anything that has an id."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from memgrid.access import token_of
from memgrid.cli.control import control_plane, find_grid
from memgrid.cli.options import GridOption, JsonOption, TokenOption, grid_of, print_json
from memgrid.endpoint import GridEndpoint
from memgrid.story import Story, story_from_message
from memgrid.v1 import grid_pb2 as pb


def explain(
    thing: Annotated[
        str, typer.Argument(metavar="ID", help="A campaign, unit, lease, host or cube.", show_default=False)
    ],
    grid: GridOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what became of a campaign, unit, lease, host or cube, and why; a unique beginning of an id will do."""
    story = asyncio.run(_story(find_grid(grid_of(grid)), token_of(token), thing))
    if as_json:
        print_json(story.to_json())
    else:
        _tell(story, Console(soft_wrap=True, highlight=False))


async def _story(endpoint: GridEndpoint, token: str | None, thing: str) -> Story:
    async with control_plane(endpoint, token) as plane:
        return story_from_message(await plane.grid.Explain(pb.ExplainRequest(id=thing)))


def _tell(story: Story, console: Console) -> None:
    console.print(f"[bold]{story.kind} {escape(story.id)}[/bold]")
    console.print(escape(story.summary))
    day = None
    for event in story.events:
        at = event.at.astimezone()
        if at.date() != day:
            day = at.date()
            console.print(f"[dim]{day.isoformat()}[/dim]")
        reason = f" [yellow]{escape(f'[{event.reason}]')}[/yellow]" if event.reason else ""
        console.print(f"[dim]{at.strftime('%H:%M:%S')}[/dim] {escape(event.text)}{reason}")
