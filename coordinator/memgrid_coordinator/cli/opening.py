"""How the commands that work on a data folder open it, and as whom they act."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from memgrid.clock import Clock, SystemClock
from memgrid.errors import InvalidError
from memgrid_coordinator.records import Caller, Role
from memgrid_coordinator.settings import Settings

if TYPE_CHECKING:
    from memgrid_coordinator.store.engine import Store

DataOption = Annotated[
    Path, typer.Option("--data", envvar="MEMGRID_DATA", help="The data folder; made at the first start.")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="MEMGRID_DATABASE",
        help="SQLAlchemy URL; SQLite in the data folder without.",
        show_default=False,
    ),
]

BlobsOption = Annotated[
    str | None,
    typer.Option(
        "--blobs",
        envvar="MEMGRID_BLOBS_URL",
        help="Where content is kept: a folder, or s3://bucket/prefix?endpoint=URL; in the data folder without.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A grid's folder and database, whether or not a coordinator serves them at the moment."""

    settings: Settings
    store: Store
    clock: Clock
    caller: Caller


@contextmanager
def opened(data: Path, database: str | None, blobs: str | None = None) -> Iterator[Opened]:
    """The grid in a data folder, its schema brought up to date; raises InvalidError where there is none."""
    from memgrid_coordinator.store.engine import Store  # a database library takes longer to load than --help

    settings = existing(data, database, blobs)
    if not (settings.keys / "grid.key").is_file():
        raise InvalidError(
            f"{settings.keys}: no grid's keys there; if it is served with --keys, set MEMGRID_KEYS_FOLDER"
        )
    store = Store(settings.database_url)
    try:
        yield Opened(settings=settings, store=store, clock=SystemClock(), caller=command_line())
    finally:
        store.close()


def existing(data: Path, database: str | None, blobs: str | None = None) -> Settings:
    """The settings of a grid that was served before; raises InvalidError."""
    if not data.is_dir():
        raise InvalidError(f"--data: {data}: no such folder; serve a grid there first")
    named = {"database": database, "blobs_url": blobs}
    given = {name: value for name, value in named.items() if value is not None}
    settings = settings_of({"data": data.resolve(), **given})
    if settings.database_url.startswith("sqlite") and not Path(settings.database_url.partition("///")[2]).is_file():
        raise InvalidError(f"--data: {data}: no grid's database in it; serve a grid there first")
    return settings


def settings_of(given: dict[str, object]) -> Settings:
    """Settings from the command line over those of the environment; raises InvalidError."""
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidError(f"settings: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def command_line() -> Caller:
    """Whoever can read the data folder holds its keys, and so is its owner."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        user = "somebody"
    return Caller(role=Role.OWNER, name=f"{user} at the command line")
