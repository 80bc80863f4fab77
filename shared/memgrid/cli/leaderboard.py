"""`memgrid leaderboard`: who gave most to a grid, volunteers or teams."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memgrid.cli.control import control_plane, find_grid
from memgrid.cli.options import GridOption, JsonOption, grid_of, print_json
from memgrid.endpoint import GridEndpoint
from memgrid.leaderboard import PAGE_LINES_MAX, Leaderboard, Period, Ranked, leaderboard_from_message
from memgrid.text import flops_text
from memgrid.v1 import grid_pb2 as pb

_PERIOD_WORDS = {Period.DAY: "today (UTC)", Period.WEEK: "in 7 days", Period.MONTH: "in 30 days", Period.ALL: "ever"}


def leaderboard(
    teams: Annotated[bool, typer.Option("--teams", help="Teams instead of volunteers.")] = False,
    period: Annotated[Period, typer.Option(help="How far back to look, in whole days.")] = Period.ALL,
    lines: Annotated[int, typer.Option(min=1, max=PAGE_LINES_MAX, help="How many to show.")] = 20,
    cursor: Annotated[str, typer.Option(help="Where to go on: what the page before said.")] = "",
    grid: GridOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who gave most to a grid: volunteers or teams, of a day, a week, a month or all time."""
    ranked = Ranked.TEAMS if teams else Ranked.ACCOUNTS
    ask = pb.LeaderboardRequest(by=ranked, period=period, cursor=cursor, lines_max=lines)
    board = asyncio.run(_ask(find_grid(grid_of(grid)), ask))
    if as_json:
        print_json(board.to_json())
    else:
        _tell(board, Console(soft_wrap=True, highlight=False))


async def _ask(endpoint: GridEndpoint, ask: pb.LeaderboardRequest) -> Leaderboard:
    async with control_plane(endpoint, None) as plane:
        return leaderboard_from_message(await plane.grid.GetLeaderboard(ask))


def _tell(board: Leaderboard, console: Console) -> None:
    whom = "teams" if board.ranked is Ranked.TEAMS else "volunteers"
    gave = f"{flops_text(board.flops)} in {board.results} results"
    console.print(f"{board.total} {whom} gave {gave} {_PERIOD_WORDS[board.period]}")
    if not board.lines:
        return
    last = "members" if board.ranked is Ranked.TEAMS else "team"
    table = Table(box=None, pad_edge=False)
    for head, side in (("#", "right"), (whom[:-1], "left"), ("given", "right"), ("results", "right"), (last, "left")):
        table.add_column(head, justify="right" if side == "right" else "left")
    for line in board.lines:
        beside = str(line.members) if board.ranked is Ranked.TEAMS else escape(line.team)
        table.add_row(str(line.rank), escape(line.name), flops_text(line.flops), str(line.results), beside)
    console.print(table)
    if board.cursor:
        console.print(f"[dim]further: --cursor {escape(board.cursor)}[/dim]")
