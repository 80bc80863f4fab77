"""The `memgrid` command: the pool's commands, and those that the extras bring."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from memgrid.cli.commands import COMMANDS
from memgrid.cli.options import remember_globally
from memgrid.errors import (
    InvalidError,
    MemgridError,
    SessionReplacedError,
    UnknownHostError,
    UntrustedGridError,
)

COMPLETION_VARIABLE = "_MEMGRID_COMPLETE"
BAD_INPUT = 2
FAILURE = 1
NEEDS_SOMEBODY = 3
"""Starting again does not help, so a service must not be: somebody has to look at it first."""
INTERRUPTED = 130


def build_app(word: str | None = None) -> typer.Typer:
    """All commands; or only the one that this first word means, and of the others the line that lists them."""
    app = typer.Typer(
        name="memgrid",
        help="Memory for language models, computed by volunteers, checked, and shared.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Boxes around a list of commands would take longer to load than everything else together.
        rich_markup_mode=None,
    )
    app.callback()(_globally)
    for command in COMMANDS.values():
        if word is None or word == command.name:
            command.mount(app)
        else:
            command.mount_help(app)
    return app


def main() -> None:
    """Run the command line; ends with the status that says how it went.

    2 for bad input, 3 for what only somebody can mend (a grid with another certificate, a host it does not know, a
    second volunteer with the same identity), 1 for any other failure that has one clear line, 130 for Ctrl-C.
    """
    try:
        # A shell that completes a word has the words elsewhere, and may ask about any command.
        word = None if COMPLETION_VARIABLE in os.environ else first_word(sys.argv[1:])
        build_app(word)()
    except InvalidError as error:
        _fail(error, BAD_INPUT)
    except (UntrustedGridError, UnknownHostError, SessionReplacedError) as error:
        _fail(error, NEEDS_SOMEBODY)
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
        from memgrid.log import get_logger

        get_logger(__name__).exception("this is a bug in memgrid")
        raise SystemExit(FAILURE) from None


def first_word(arguments: list[str]) -> str:
    """The command, behind the options that all commands share; empty when there is none.

    >>> first_word(["--grid", "https://grid.example", "pull", "a/b"])
    'pull'
    >>> first_word(["--help"])
    ''
    """
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--grid", "--token"):
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return ""


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # reads a mail parser and more, for one line of text

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


def _fail(error: MemgridError, exit_code: int) -> None:
    typer.echo(f"memgrid: {error}", err=True)
    raise SystemExit(exit_code) from None
