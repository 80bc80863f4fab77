"""`memgrid volunteer key`: back it up, restore it, or move the whole identity to another machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memgrid.errors import InvalidError
from memgrid_volunteer.home import Home, default_home

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The volunteer's own folder.", envvar="MEMGRID_VOLUNTEER_HOME")
]
FileArgument = Annotated[Path, typer.Argument(help="The file; it holds the key, encrypted.")]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Where the passphrase stands, `-` for standard input; else asked for."),
]
GridOption = Annotated[
    str | None, typer.Option("--grid", help="Which grid's key, if several were joined: its name or its address.")
]

key_app = typer.Typer(name="key", help="The key is the account: keep it, and take it along.", no_args_is_help=True)


@key_app.command()
def backup(
    file: FileArgument,
    grid: GridOption = None,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Write the key to a file that a passphrase protects."""
    from memgrid.clock import SystemClock
    from memgrid_volunteer.service import keys

    place = keys.place_of(Home(home or default_home()), grid)
    sealed = keys.back_up(place, file, _passphrase(passphrase_file, is_new=True), SystemClock().now())
    typer.echo(f"{file}: key {sealed.public_key.hex()[:12]}; without the passphrase nobody can use it, you included")


@key_app.command()
def restore(
    file: FileArgument,
    grid: Annotated[
        str, typer.Option(help="The address of the grid that a key is for; without: the first that was joined.")
    ] = "",
    home: HomeOption = None,
    is_replacing: Annotated[bool, typer.Option("--replace", help="Put a key that is there aside.")] = False,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Put a key, or an identity that was moved, onto this machine."""
    from memgrid_volunteer.service import keys

    place = Home(home or default_home())
    passphrase = _passphrase(passphrase_file, is_new=False)
    sealed = keys.restore(place, file, passphrase, grid=grid, is_replacing=is_replacing)
    if sealed.membership is None:
        typer.echo("restored the key; go on with: memgrid volunteer join URL --label NAME, a name of its own")
    else:
        name, host = sealed.membership.name, sealed.membership.label
        typer.echo(f"this machine is the host {host} on {name} now; begin with: memgrid volunteer run")


@key_app.command()
def move(
    file: FileArgument,
    grid: GridOption = None,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Write key and host to a file for another machine, and be that host here no more."""
    from memgrid.clock import SystemClock
    from memgrid_volunteer.service import keys

    folder = Home(home or default_home())
    place = keys.place_of(folder, grid)
    waiting = sum(path.is_dir() for path in place.outbox.glob("*")) if place.outbox.is_dir() else 0
    if waiting:
        raise InvalidError(f"{waiting} results here await their verdict; run until there are none, or they are lost")
    passphrase = _passphrase(passphrase_file, is_new=True)
    sealed = keys.move(folder, file, passphrase, SystemClock().now(), grid=grid)
    assert sealed.membership is not None
    typer.echo(
        f"{file}: the host {sealed.membership.label} on {sealed.membership.name}. On the other machine:\n"
        f"  memgrid volunteer key restore {file.name}\n  memgrid volunteer run\n"
        "Here it runs no more; uninstall the service if there is one."
    )


def _passphrase(file: Path | None, *, is_new: bool) -> str:
    if file is None:
        passphrase: str = typer.prompt("passphrase", hide_input=True, confirmation_prompt=is_new, err=True)
        return passphrase
    text = sys.stdin.readline() if str(file) == "-" else file.read_text()
    return text.splitlines()[0] if text else ""
