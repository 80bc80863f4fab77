"""`memgrid volunteer status`: how this machine stands, and with each of its grids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from memgrid.clock import SystemClock
from memgrid.nickname import nickname
from memgrid_volunteer import team_cli
from memgrid_volunteer.grid_view import GridView, names_text
from memgrid_volunteer.grids_cli import in_words, views_of
from memgrid_volunteer.home import Home, default_home
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.owner.words import pause_text
from memgrid_volunteer.page import cli as page_cli
from memgrid_volunteer.status import VolunteerStatus
from memgrid_volunteer.view import device_lines, view_of


def register(app: typer.Typer) -> None:
    """Add the command to `memgrid volunteer`."""
    app.command()(status)


def status(
    home: Annotated[
        Path | None, typer.Option("--home", help="The volunteer's own folder.", envvar="MEMGRID_VOLUNTEER_HOME")
    ] = None,
    is_local: Annotated[bool, typer.Option("--local", help="Only what this machine knows; ask nobody.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Show how this volunteer stands, and what it has achieved."""
    place = Home(home or default_home())
    views = views_of(place, SystemClock().now())
    standings = [] if is_local else team_cli.standings_of(place.joined())
    facts = _facts(place, views)
    if standings:
        facts["standing"] = standings[0][0]
        for grid, (standing, _) in zip(facts["grids"], standings, strict=True):
            grid["standing"] = standing
    words = [team_cli.standing_in_words(*each) for each in standings] or [[] for _ in views]
    typer.echo(json.dumps(facts, indent=1) if as_json else _text(facts, views, words))


def _facts(home: Home, views: Sequence[GridView]) -> dict[str, Any]:
    """What `--json` prints; what is said of the grid alone is of the first."""
    membership, written = home.joined()[0].membership(), home.status()
    # What a killed process wrote last is not how things stand.
    state = written.get("state", "stopped") if home.is_running else "stopped"
    now = SystemClock().now().astimezone(LOCAL)
    pauses = Control(home.folder).pauses(now)
    return {
        **written,
        "state": state,
        "paused": bool(pauses),
        "pauses": [pause_text(pause, now) for pause in pauses],
        "grid": membership.name,
        "url": membership.url,
        "host_id": membership.host_id,
        "account_id": membership.account_id,
        "public_name": nickname(membership.account_id),
        "label": membership.label,
        "grids": [asdict(view) for view in views],
        "page": None if (key := page_cli.open_page(home)) is None else key.url,
    }


def _text(facts: dict[str, Any], views: Sequence[GridView], standings: Sequence[Sequence[str]]) -> str:
    if len(views) == 1:
        head = f"{facts['label']} on {facts['grid']} (host {facts['host_id']})"
        return "\n".join([head, *_lines(facts, f", as {facts['public_name']} on the grid's page"), *standings[0]])
    parts = [f"{facts['label']} on {names_text([view.name for view in views])}", *_lines(facts, "")]
    for view, standing in zip(views, standings, strict=True):
        parts += ["", in_words(view), *standing]
    return "\n".join(parts)


def _lines(facts: dict[str, Any], known_as: str) -> list[str]:
    idle = facts.get("idle_reason") or {}
    state = ", ".join([facts["state"], *facts["pauses"]])
    return [
        f"  state      {state}" + (f": {idle['text'] or idle['code']}" if idle else _progress(facts)),
        "  devices    " + "\n             ".join(_devices(facts)),
        f"  isolation  {facts.get('isolation', 'not known yet')}",
        f"  units      {facts.get('units_done', 0)} done, {facts.get('accepted', 0)} accepted,"
        f" {facts.get('rejected', 0)} rejected, {facts.get('awaiting_verdict', 0)} awaiting a verdict",
        f"  credit     {facts.get('credit_flops', 0) / 1e12:.3g} TFLOP{known_as}",
        *([f"  page       {facts['page']}"] if facts["page"] else []),
    ]


def _devices(facts: dict[str, Any]) -> list[str]:
    now, status = SystemClock().now().astimezone(LOCAL), VolunteerStatus.from_json({**facts, "grids": ()})
    return device_lines(view_of(status, (), now, is_running=facts["state"] != "stopped"))


def _progress(facts: dict[str, Any]) -> str:
    return f": {facts['progress']}" if facts["state"] == "running" and facts.get("progress") else ""
