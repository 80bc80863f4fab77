"""The `memgrid` command: the pool's commands, and those that the extras bring."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer
from rich.markup import escape

from memgrid.cli import pool
from memgrid.cli.options import remember_globally
from memgrid.errors import InvalidError, MemgridError
from memgrid.log import get_logger

ENTRY_POINTS = "memgrid.cli"
BAD_INPUT = 2
FAILURE = 1
INTERRUPTED = 130


def build_app(word: str | None = None) -> typer.Typer:
    """All commands, or only those that a first word like `pull` or `volunteer` can mean.

    Each part brings libraries that the others do without: a volunteer's supervisor has no use for a database.
    """
    app = typer.Typer(
        name="memgrid",
        help="Memory for language models, computed by volunteers, checked, and shared.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_globally)
    extras = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if word not in extras:
        pool.mount(app)
        if word not in pool.COMMANDS:
            _mount_talking_commands(app)
            _mount_operator_commands(app)
    for name, entry in sorted(extras.items()):
        if word == name or (word not in extras and word not in pool.COMMANDS):
            _mount_extra(app, entry)
    return app


def main() -> None:
    """Run the command line. Ends with 2 for bad input, 1 for a failure that has one clear line, 130 for Ctrl-C."""
    try:
        build_app(_first_word(sys.argv[1:]))()
    except InvalidError as error:
        _fail(error, BAD_INPUT)
    except MemgridError as error:
        _fail(error, FAILURE)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has gone (`memgrid search | head`): nothing is wrong, and nobody is there to be told.
        sys.stderr.close()
        raise SystemExit(FAILURE) from None
    except OSError as error:
        _fail(MemgridError(f"{error.filename or 'system'}: {error.strerror or error}"), FAILURE)
    except Exception:  # noqa: BLE001 - the top of every command
        get_logger(__name__).exception("this is a bug in memgrid")
        raise SystemExit(FAILURE) from None


def _first_word(arguments: list[str]) -> str | None:
    """The command, behind the options that all commands share; None when only the parser can tell."""
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--grid", "--token"):
            next(rest, None)
        elif not argument.startswith(("--grid=", "--token=")):
            return argument
    return None


def _mount_operator_commands(app: typer.Typer) -> None:
    from memgrid.cli import campaign, model
    from memgrid.cli.explain import explain

    app.add_typer(campaign.app, name="campaign")
    app.add_typer(model.app, name="model")
    app.command(name="explain")(explain)


def _mount_talking_commands(app: typer.Typer) -> None:
    from memgrid.cli.chat import chat
    from memgrid.cli.serve import serve

    app.command(name="chat")(chat)
    app.command(name="serve")(serve)


def _mount_extra(app: typer.Typer, entry: EntryPoint) -> None:
    """An extra that is not installed leaves a command that says how to install it."""
    try:
        app.add_typer(entry.load(), name=entry.name)
    except ModuleNotFoundError as error:
        hint = f"Needs: pip install {escape(f'memgrid[{entry.name}]')}"
        settings = {"ignore_unknown_options": True, "allow_extra_args": True}
        command = _missing(entry.name, error.name or "a library")
        app.command(name=entry.name, help=hint, context_settings=settings)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("memgrid"))
        raise typer.Exit


def _globally(
    grid: Annotated[
        str | None, typer.Option("--grid", help="The grid: https://host:port", show_default=False)
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="An operator's token, or @FILE.", show_default=False)
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    remember_globally(grid, token)


def _missing(extra: str, library: str) -> Callable[[], None]:
    def command() -> None:
        raise InvalidError(f"memgrid {extra} needs {library}: pip install 'memgrid[{extra}]'")

    return command


def _fail(error: MemgridError, exit_code: int) -> None:
    typer.echo(f"memgrid: {error}", err=True)
    raise SystemExit(exit_code) from None
