"""`memgrid coordinator backup | restore | migrate`: what keeps a grid."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memgrid.cli.options import JsonOption, print_json
from memgrid.errors import InvalidError
from memgrid.text import bytes_text
from memgrid_coordinator.cli.opening import BlobsOption, DatabaseOption, DataOption, existing, opened, settings_of

if TYPE_CHECKING:
    from memgrid_coordinator.services.backups import Backup


def backup(
    target: Annotated[Path, typer.Argument(help="A new folder, or an earlier backup to bring up to date.")],
    data: DataOption,
    content: Annotated[bool, typer.Option(help="With the content of the blob store; always listed.")] = True,
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back a grid up while it runs: database, keys and content, as of one moment."""
    from memgrid_coordinator.services.backing_up import back_up
    from memgrid_coordinator.store import audit_log
    from memgrid_coordinator.store.blob_places import blobs_of

    with opened(data, database, blobs) as grid:
        now = grid.clock.now()
        made = back_up(grid.settings, blobs_of(grid.settings), target, now, _say, with_blobs=content)
        detail = f"to {target.resolve()}, {made.blobs} blobs"
        caller = grid.caller
        asyncio.run(
            grid.store.write(
                lambda connection: audit_log.note(connection, caller, "backup", made.database, now, detail=detail)
            )
        )
    _tell(f"backed up to {target}", made, as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `backup` wrote.")],
    data: Annotated[Path | None, typer.Option("--data", help="Where the grid shall be: a new folder.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only read and check the backup; write nothing.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a grid of a backup, every byte of which is checked first."""
    from memgrid_coordinator.services import restoring

    if check:
        _tell(f"{source} is whole", restoring.check(source, _say), as_json)
        return
    if data is None:
        raise InvalidError("--data: expected the new grid's folder, or --check to only check the backup")
    settings = settings_of({"data": data.resolve(), **({} if database is None else {"database": database})})
    made = restoring.restore(source, settings, _say)
    _tell(f"restored to {data}", made, as_json)
    if not made.has_blobs and not as_json:
        typer.echo(f"its content is no part of the backup: bring the {made.blobs} files of blobs.txt yourself")


def migrate(
    data: DataOption,
    check: Annotated[bool, typer.Option("--check", help="Only say what there is to do; fails if there is.")] = False,
    database: DatabaseOption = None,
) -> None:
    """Bring a database's schema up to date; `serve` does it too. Nothing is lost, but nothing leads back."""
    from memgrid_coordinator.store import schema, upgrading

    settings = existing(data, database)
    version = schema.version_at(settings.database_url)
    steps = schema.pending(version)
    for step in steps:
        typer.echo(step)
    if steps and check:
        raise typer.Exit(1)
    upgrading.migrate(settings.database_url)  # refuses a schema that is newer than this release
    newest = upgrading.versions()[-1]
    done = f"was brought from {version or 'nothing'} to {newest}" if steps else f"is up to date: {version}"
    typer.echo(f"the schema {done}")


def _say(what: str) -> None:
    typer.echo(what, err=True)


def _tell(begin: str, made: Backup, as_json: bool) -> None:
    if as_json:
        import json

        print_json(json.loads(made.to_bytes()))
        return
    content = f"{made.blobs} files of content ({bytes_text(made.blob_bytes)})"
    moment = f"{made.created_at:%Y-%m-%d %H:%M:%S} UTC"
    typer.echo(f"{begin}: the grid {made.grid_key[:16]} as of {moment}, schema {made.schema}")
    listed = "" if made.has_blobs else ", listed only"
    typer.echo(f"  database {bytes_text(made.database_bytes)}, {content}{listed}")
    typer.echo("  " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in made.rows.items()))
