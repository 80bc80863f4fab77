"""`memgrid volunteer`: join a grid, work for it, pause, leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from memgrid.clock import SystemClock
from memgrid.errors import InvalidError
from memgrid.log import configure_logging
from memgrid.nickname import nickname
from memgrid_volunteer import running, team_cli
from memgrid_volunteer.home import Home, Membership, default_home
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.owner import cli as owner_cli
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.owner.words import pause_text
from memgrid_volunteer.page import cli as page_cli
from memgrid_volunteer.sandbox import WORKER_MODULE
from memgrid_volunteer.service import cli as service_cli
from memgrid_volunteer.service.keeping import as_service
from memgrid_volunteer.service.keys import check_label
from memgrid_volunteer.stopping import Stopping

app = typer.Typer(name="volunteer", help="Give this machine's idle time to a grid.", no_args_is_help=True)
owner_cli.register(app)
service_cli.register(app)
page_cli.register(app)

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The volunteer's own folder.", envvar="MEMGRID_VOLUNTEER_HOME")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads to compute with; without: $OMP_NUM_THREADS, else one a core.")
]
WorkerOption = Annotated[str, typer.Option(help="The module that computes.", hidden=True)]
IsolationOption = Annotated[
    Isolation | None, typer.Option(help="Ask for these walls around the worker; without: the strongest that work.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@app.command()
def join(
    url: Annotated[str, typer.Argument(help="The grid's address, as its owner published it.")],
    home: HomeOption = None,
    label: Annotated[str | None, typer.Option(help="What to call this machine; its name without.")] = None,
    invite: Annotated[str, typer.Option(help="The invite code, if the grid wants one.")] = "",
    threads: ThreadsOption = None,
    isolation: IsolationOption = None,
    worker_module: WorkerOption = WORKER_MODULE,
    as_json: JsonOption = False,
) -> None:
    """Join a grid: no account, no open port; a key made here is all it knows you by."""
    configure_logging(level="WARNING")
    place = _home(home)
    options = running.Options(threads=threads, worker_module=worker_module, isolation=isolation)
    membership = _join(url, place, label=label, invite=invite, options=options)
    facts = {"grid": membership.name, "url": membership.url, "host_id": membership.host_id}
    _print(
        {**facts, "label": membership.label, "isolation": place.status().get("isolation")},
        f"joined {membership.name} as {membership.label} (host {membership.host_id}); "
        "begin with: memgrid volunteer run",
        as_json,
    )


@app.command()
def run(
    url: Annotated[
        str | None,
        typer.Argument(help="A grid to join first, if that was not done; the address its owner published."),
    ] = None,
    home: HomeOption = None,
    once: Annotated[bool, typer.Option("--once", help="One unit to its verdict, then exit.")] = False,
    max_units: Annotated[int | None, typer.Option(min=1, help="So many units to their verdicts, then exit.")] = None,
    settle_limit_s: Annotated[float, typer.Option(min=0, help="How long to wait for those verdicts.")] = 600.0,
    threads: ThreadsOption = None,
    cache_gb: Annotated[
        float | None, typer.Option(min=0.01, help="Room for models and inputs; without: disk.cache_gb.")
    ] = None,
    isolation: IsolationOption = None,
    is_service: Annotated[
        bool, typer.Option("--service", help="As a service manager starts it: log to a file, and not in circles.")
    ] = False,
    has_page: Annotated[
        bool, typer.Option("--page/--no-page", help="Serve a page to this machine's browser.")
    ] = True,
    page_port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0: the one of last time.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Have all machines of a Ray cluster compute: auto, or HOST:PORT."),
    ] = None,
    worker_module: WorkerOption = WORKER_MODULE,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens inside, too.")] = False,
    json_logs: Annotated[bool, typer.Option(help="Log JSON, for machines.")] = False,
) -> None:
    """Work until stopped; Ctrl-C gives everything back first."""
    place = _home(home)
    limits = Limits(
        max_units=1 if once else max_units,
        settle_limit_s=settle_limit_s,
        cache_bytes=None if cache_gb is None else int(cache_gb * 1e9),
    )
    options = running.Options(
        limits=limits,
        threads=threads,
        worker_module=worker_module,
        isolation=isolation,
        page_port=page_port if has_page else None,
        nodes=None if ray is None else lambda: running.ray_nodes(ray),
    )
    with as_service(place.folder, SystemClock()) if is_service else contextlib.nullcontext():
        configure_logging(level="INFO" if verbose else "WARNING", as_json=json_logs)
        if url is not None:
            _join_first(url, place, options)
        try:
            asyncio.run(_run(place, options))
        except (asyncio.CancelledError, KeyboardInterrupt):
            typer.echo("stopped")


@app.command()
def status(
    home: HomeOption = None,
    is_local: Annotated[bool, typer.Option("--local", help="Only what this machine knows; ask nobody.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how this volunteer stands, and what it has achieved."""
    place = _home(home)
    facts, words = _status(place), []
    if not is_local:
        facts["standing"], reason = team_cli.standing_of(place, place.membership())
        words = team_cli.standing_in_words(facts["standing"], reason)
    _print(facts, "\n".join([_in_words(facts), *words]), as_json)


@app.command()
def team(
    name: Annotated[
        str | None, typer.Argument(help="The team to found, or to join with its code; without: show.")
    ] = None,
    code: Annotated[str, typer.Option(help="What its members have: lets this account into a team.")] = "",
    is_leaving: Annotated[bool, typer.Option("--leave", help="Leave the team; what it was given stays.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Found a team, join one, leave it, or show it; credit counts for the team one is in when it is earned."""
    configure_logging(level="WARNING")
    facts = team_cli.change_team(_home(home), name, code=code, is_leaving=is_leaving)
    _print(facts, team_cli.team_in_words(facts, is_leaving=is_leaving), as_json)


@app.command()
def leave(home: HomeOption = None) -> None:
    """Leave the grid: give everything back and empty the folder. The key stays, and so does the credit."""
    configure_logging(level="WARNING")
    place = _home(home)
    name = place.membership().name
    asyncio.run(running.leave(place))
    typer.echo(f"left {name}")


async def _run(home: Home, options: running.Options) -> None:
    stopping = Stopping()
    with stopping.on_signals():
        await running.run(home, options, typer.echo, stopping)


def _home(folder: Path | None) -> Home:
    return Home(folder or default_home())


def _join_first(url: str, place: Home, options: running.Options) -> None:
    """Unless that was done before; raises InvalidError when it was another grid."""
    _check_free(place, url)
    if not place.grid_url:
        membership = _join(url, place, options=options)
        typer.echo(f"joined {membership.name} as {membership.label} (host {membership.host_id})")


def _join(
    url: str, place: Home, *, options: running.Options, label: str | None = None, invite: str = ""
) -> Membership:
    _check_free(place, url)
    name = label or platform.node() or "volunteer"
    check_label(place, name)
    told = running.join(
        url, place, label=name, invite_code=invite, options=options, tell=lambda line: typer.echo(line, err=True)
    )
    return asyncio.run(told)


def _check_free(home: Home, url: str) -> None:
    """Raises InvalidError when the folder belongs to another grid, or is in use."""
    if not home.folder.exists():
        return
    if home.is_running:
        raise InvalidError(f"{home.folder}: a volunteer is running here already")
    if home.grid_url not in ("", url.partition("#")[0].rstrip("/")):
        raise InvalidError(f"{home.folder}: has joined {home.grid_url}; leave it first, or use another --home")


def _status(home: Home) -> dict[str, Any]:
    membership = home.membership()
    written = home.status()
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
        "page": None if (key := page_cli.open_page(home)) is None else key.url,
    }


def _in_words(facts: dict[str, Any]) -> str:
    devices = ", ".join(device["name"] for device in facts.get("devices", [])) or "not known yet"
    idle = facts.get("idle_reason") or {}
    state = ", ".join([facts["state"], *facts["pauses"]])
    lines = [
        f"{facts['label']} on {facts['grid']} (host {facts['host_id']})",
        f"  state      {state}" + (f": {idle['text'] or idle['code']}" if idle else _progress(facts)),
        f"  devices    {devices}",
        f"  isolation  {facts.get('isolation', 'not known yet')}",
        f"  units      {facts.get('units_done', 0)} done, {facts.get('accepted', 0)} accepted,"
        f" {facts.get('rejected', 0)} rejected, {facts.get('awaiting_verdict', 0)} awaiting a verdict",
        f"  credit     {facts.get('credit_flops', 0) / 1e12:.3g} TFLOP, as {facts['public_name']} on the grid's page",
        *([f"  page       {facts['page']}"] if facts["page"] else []),
    ]
    return "\n".join(lines)


def _progress(facts: dict[str, Any]) -> str:
    return f": {facts['progress']}" if facts["state"] == "running" and facts.get("progress") else ""


def _print(facts: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts, indent=1) if as_json else words)
