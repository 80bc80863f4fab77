"""The owner's commands: pause and resume."""

from __future__ import annotations

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


def register(app: typer.Typer) -> None:
    """Add the owner's commands to `memgrid volunteer`."""
    app.command()(pause)
    app.command()(resume)


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


def _device_id(text: str | None) -> DeviceId | None:
    if text is not None and not text.strip():
        raise InvalidError("--device: expected a device such as cuda:0 or cpu")
    return text
