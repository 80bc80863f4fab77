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
from memgrid_volunteer import grids_cli, running, status_cli, team_cli
from memgrid_volunteer.home import Home, Membership, default_home
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.owner import cli as owner_cli
from memgrid_volunteer.page import cli as page_cli
from memgrid_volunteer.sandbox import WORKER_MODULE
from memgrid_volunteer.service import cli as service_cli
from memgrid_volunteer.service.keeping import as_service
from memgrid_volunteer.service.keys import check_label
from memgrid_volunteer.shares import SHARE_MAX
from memgrid_volunteer.stopping import Stopping

app = typer.Typer(name="volunteer", help="Give this machine's idle time to a grid.", no_args_is_help=True)
owner_cli.register(app)
service_cli.register(app)
page_cli.register(app)
grids_cli.register(app)
status_cli.register(app)

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
    share: Annotated[
        int | None,
        typer.Option(min=0, max=SHARE_MAX, help="Its part of this machine beside other grids; 100 without."),
    ] = None,
    threads: ThreadsOption = None,
    isolation: IsolationOption = None,
    worker_module: WorkerOption = WORKER_MODULE,
    as_json: JsonOption = False,
) -> None:
    """Join a grid, beside others if you like: no account, no open port; a key made here is all it knows you by."""
    configure_logging(level="WARNING")
    place = _home(home)
    options = running.Options(threads=threads, worker_module=worker_module, isolation=isolation)
    membership = _join(url, place, label=label, invite=invite, share=share, options=options)
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
def team(
    name: Annotated[
        str | None, typer.Argument(help="The team to found, or to join with its code; without: show.")
    ] = None,
    code: Annotated[str, typer.Option(help="What its members have: lets this account into a team.")] = "",
    is_leaving: Annotated[bool, typer.Option("--leave", help="Leave the team; what it was given stays.")] = False,
    grid: Annotated[str | None, typer.Option(help="Of which grid, if several were joined: name or address.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Found a team, join one, leave it, or show it; credit counts for the team one is in when it is earned."""
    configure_logging(level="WARNING")
    facts = team_cli.change_team(_home(home).find(grid), name, code=code, is_leaving=is_leaving)
    _print(facts, team_cli.team_in_words(facts, is_leaving=is_leaving), as_json)


@app.command()
def leave(
    grid: Annotated[
        str | None, typer.Argument(help="Which, if several were joined: its name or its address.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Leave a grid: give everything back and empty its folder. The key stays, and so does the credit."""
    configure_logging(level="WARNING")
    place = _home(home)
    left = place.find(grid)
    name = left.membership().name
    asyncio.run(running.leave(place, left))
    typer.echo(f"left {name}")


async def _run(home: Home, options: running.Options) -> None:
    stopping = Stopping()
    with stopping.on_signals():
        await running.run(home, options, typer.echo, stopping)


def _home(folder: Path | None) -> Home:
    return Home(folder or default_home())


def _join_first(url: str, place: Home, options: running.Options) -> None:
    """Unless that was done before."""
    _check_free(place)
    if not place.place_for(url).has_joined:
        membership = _join(url, place, options=options)
        typer.echo(f"joined {membership.name} as {membership.label} (host {membership.host_id})")


def _join(
    url: str,
    place: Home,
    *,
    options: running.Options,
    label: str | None = None,
    invite: str = "",
    share: int | None = None,
) -> Membership:
    _check_free(place)
    name = label or platform.node() or "volunteer"
    check_label(place.place_for(url), name)
    told = running.join(
        url,
        place,
        label=name,
        invite_code=invite,
        options=options,
        tell=lambda line: typer.echo(line, err=True),
        share=share,
    )
    return asyncio.run(told)


def _check_free(home: Home) -> None:
    """Raises InvalidError when the folder is in use."""
    if home.folder.exists() and home.is_running:
        raise InvalidError(f"{home.folder}: a volunteer is running here already; stop it first")


def _print(facts: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts, indent=1) if as_json else words)
