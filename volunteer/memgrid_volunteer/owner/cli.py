"""The owner's commands: pause, resume, what is seen and decided, and preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from memgrid.clock import SystemClock
from memgrid.errors import InvalidError
from memgrid_volunteer.home import Home, default_home
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.durations import parse_duration
from memgrid_volunteer.owner.local_time import LOCAL
from memgrid_volunteer.owner.words import pause_text

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The volunteer's own folder.", envvar="MEMGRID_VOLUNTEER_HOME")
]
DeviceOption = Annotated[str | None, typer.Option(help="One device such as cuda:0 or cpu; without: all.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
KeyArgument = Annotated[str, typer.Argument(help="Such as when.idle_minutes or devices.cuda:0.duty_percent.")]

preferences_app = typer.Typer(
    name="preferences", help="What this machine may be used for, and when.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the owner's commands to `memgrid volunteer`."""
    app.command()(pause)
    app.command()(resume)
    app.command()(probe)
    app.add_typer(preferences_app)


def pause(
    home: HomeOption = None,
    how_long: Annotated[
        str | None, typer.Option("--for", help="So long, such as 45m or 1h; without: no end.")
    ] = None,
    device: DeviceOption = None,
    is_until_restart: Annotated[
        bool, typer.Option("--until-restart", help="Only until the volunteer starts again.")
    ] = False,
) -> None:
    """Stop computing within two seconds and give all memory back; finished work is still delivered."""
    place = Home(home or default_home())
    place.membership()
    if how_long is not None and is_until_restart:
        raise InvalidError("--for and --until-restart: choose one")
    now = SystemClock().now()
    until = None if how_long is None else now + parse_duration(how_long)
    wanted = Control(place.folder).pause(
        now, device_id=_device_id(device), until=until, is_until_restart=is_until_restart
    )
    typer.echo(pause_text(wanted, now.astimezone(LOCAL)))


def resume(home: HomeOption = None, device: DeviceOption = None) -> None:
    """Go on computing, as far as preferences and the machine allow."""
    place = Home(home or default_home())
    place.membership()
    control, now = Control(place.folder), SystemClock().now()
    control.resume(now, device_id=_device_id(device))
    left = [pause_text(other, now.astimezone(LOCAL)) for other in control.pauses(now)]
    typer.echo("\n".join(["resumed", *(f"still {line}" for line in left)]))


def probe(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what each probe sees, or why it can't, and what each device may do now."""
    from rich.console import Console

    from memgrid_volunteer.owner.looking import look_once
    from memgrid_volunteer.owner.showing import report_json, report_table

    look = look_once(Home(home or default_home()))
    facts = (look.sights, look.decisions, look.pauses, look.problems, look.now)
    if as_json:
        typer.echo(json.dumps(report_json(*facts), indent=1))
    else:
        Console().print(report_table(*facts))


@preferences_app.command()
def show(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show all that holds, what the preset says included."""
    from memgrid_volunteer.owner.preferences_file import PreferencesFile
    from memgrid_volunteer.owner.preferences_toml import to_toml

    file = PreferencesFile(Home(home or default_home()).folder)
    preferences = file.current()
    for problem in file.problems:
        typer.echo(f"{problem} (what was said before holds)", err=True)
    text = json.dumps(preferences.model_dump(mode="json"), indent=1) if as_json else to_toml(preferences).rstrip()
    typer.echo(text)


@preferences_app.command("set")
def set_key(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(help="As TOML has it: 5, true, pause, '[\"sat-sun\"]'.")],
    home: HomeOption = None,
) -> None:
    """Set one key; comments and everything else in the file stay. It holds at once."""
    from memgrid_volunteer.owner.preferences_file import PreferencesFile

    place = _made(home)
    PreferencesFile(place.folder).set(key, value)
    typer.echo(f"{key} set")


@preferences_app.command()
def unset(key: KeyArgument, home: HomeOption = None) -> None:
    """Leave one key to the preset again."""
    from memgrid_volunteer.owner.preferences_file import PreferencesFile

    PreferencesFile(_made(home).folder).unset(key)
    typer.echo(f"{key} is the preset's again")


@preferences_app.command()
def preset(
    name: Annotated[str, typer.Argument(help="polite, night or always.")],
    home: HomeOption = None,
) -> None:
    """Choose a preset; what the file says beside it still goes before it."""
    from memgrid_volunteer.owner.preferences_file import PreferencesFile

    PreferencesFile(_made(home).folder).set("preset", name)
    typer.echo(f"preset {name}")


@preferences_app.command()
def path(home: HomeOption = None) -> None:
    """Print where the file is."""
    from memgrid_volunteer.owner.preferences_file import PreferencesFile

    typer.echo(PreferencesFile(Home(home or default_home()).folder).path)


def _made(home: Path | None) -> Home:
    place = Home(home or default_home())
    place.make()
    return place


def _device_id(text: str | None) -> DeviceId | None:
    if text is not None and not text.strip():
        raise InvalidError("--device: expected a device such as cuda:0 or cpu")
    return text
