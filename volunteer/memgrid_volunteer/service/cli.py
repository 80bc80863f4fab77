"""The service's commands: install, uninstall, service-status, doctor, and the key's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from memgrid.errors import InvalidError
from memgrid_volunteer.home import Home, default_home
from memgrid_volunteer.service.key_cli import key_app

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The volunteer's own folder.", envvar="MEMGRID_VOLUNTEER_HOME")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `memgrid volunteer`."""
    app.command(context_settings={"ignore_unknown_options": False})(install)
    app.command()(uninstall)
    app.command("service-status")(service_status)
    app.command()(doctor)
    app.add_typer(key_app)


def install(
    home: HomeOption = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Only print what would be written and called.")] = False,
    manager: Annotated[
        str | None, typer.Option(help="systemd, launchd or task-scheduler; without: this system's. For --dry-run.")
    ] = None,
    run_options: Annotated[
        list[str] | None, typer.Argument(help="Options of `run`, after `--`: -- --threads 4.")
    ] = None,
) -> None:
    """Keep the volunteer running: started at every login, watched, and restarted when it fails."""
    from memgrid_volunteer.service import installing
    from memgrid_volunteer.service.definition import Manager

    place = Home(home or default_home())
    if manager is not None and manager not in list(Manager):
        raise InvalidError(f"--manager: expected {', '.join(Manager)}, found {manager[:40]!r}")
    if manager is not None and not is_dry:
        raise InvalidError("--manager: only together with --dry-run; this system has the one it has")
    chosen = Manager(manager) if manager is not None else installing.manager_here()
    plan = installing.plan_for(chosen, place, run_options or ())
    if is_dry:
        encoding = "utf-16" if chosen is Manager.TASK_SCHEDULER else "utf-8"
        calls = "\n".join(" ".join(command) for command in plan.begin)
        typer.echo(f"would write {plan.path}:\n\n{plan.content.decode(encoding)}\nand call:\n{calls}")
        return
    installing.install(plan, place)
    typer.echo(f"installed {plan.service.name} at {plan.path}\n{plan.advice}")


def uninstall(home: HomeOption = None) -> None:
    """Stop the service and remove it; grid, key and credit stay as they are."""
    from memgrid_volunteer.service import installing

    plan = installing.plan_for(installing.manager_here(), Home(home or default_home()))
    removed = installing.uninstall(plan)
    typer.echo(f"removed {plan.service.name}" if removed else f"{plan.service.name} is not installed")


def service_status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how the service manager sees the volunteer, and how its last starts ended."""
    from memgrid_volunteer.service import installing
    from memgrid_volunteer.service.crashes import Starts

    place = Home(home or default_home())
    plan = installing.plan_for(installing.manager_here(), place)
    found = {"name": plan.service.name, "manager": plan.manager.value, **installing.state(plan)}
    ends = [
        {"at": start.at.isoformat(timespec="seconds"), "ended": start.reason or "well"}
        for start in Starts(place.folder).all()
    ]
    if as_json:
        typer.echo(json.dumps({**found, "starts": ends}, indent=1))
        return
    lines = [f"{name:12}{value}" for name, value in found.items()]
    lines += [f"{'start':12}{end['at']}  {end['ended']}" for end in ends[-5:]]
    typer.echo("\n".join(lines))


def doctor(
    home: HomeOption = None,
    escapes: Annotated[
        bool, typer.Option("--escapes", help="Try instead how a hostile worker fares behind each wall; a minute.")
    ] = False,
    worker_module: Annotated[str, typer.Option(help="The module that computes.", hidden=True)] = "",
    as_json: JsonOption = False,
) -> None:
    """Examine this volunteer, running or not, and say what to do; shows no secret. Fails if something is bad."""
    place = Home(home or default_home())
    if escapes:
        _try_escapes(place, as_json)
        return
    import random
    from dataclasses import asdict

    from memgrid.clock import SystemClock
    from memgrid.findings import Level, lines_of
    from memgrid.log import configure_logging
    from memgrid_volunteer.doctor import examine
    from memgrid_volunteer.sandbox import WORKER_MODULE

    configure_logging(level="ERROR")
    found = []
    for finding in examine(place, SystemClock(), random.Random(), worker_module=worker_module or WORKER_MODULE):
        found.append(finding)
        if not as_json:
            typer.echo("\n".join(lines_of(finding)))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    if any(finding.level is Level.BAD for finding in found):
        raise typer.Exit(1)


def _try_escapes(home: Home, as_json: bool) -> None:
    """Each escape behind each wall that can be had here; fails if one gets through where it should not."""
    import asyncio
    import tempfile

    from memgrid.log import configure_logging
    from memgrid_volunteer.escapes.trial import Result, table, try_escapes
    from memgrid_volunteer.isolation import Folders, Isolation, try_all
    from memgrid_volunteer.sandbox import environment

    configure_logging(level="ERROR")

    async def trial(folder: Path) -> list[Result]:
        folders = Folders(cache=folder / "cache", work=folder / "work")
        tried = [each async for each in try_all(folders, environment(folders.scratch, 1))]
        holding = [each.isolation for each in tried if not each.reason]
        return [each async for each in try_escapes([*holding, Isolation.NONE], folder)]

    home.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.folder, prefix=".escapes-") as folder:
        results = asyncio.run(trial(Path(folder)))
    lines = table(results)
    if as_json:
        typer.echo(json.dumps([dict(zip(lines[0], line, strict=True)) for line in lines[1:]], indent=1))
    else:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            typer.echo("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    if any(result.is_through and result.isolation is not Isolation.NONE for result in results):
        raise typer.Exit(1)
