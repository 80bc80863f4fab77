"""The `memgrid` command: the pool's commands, and those that the extras bring."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from typing import Annotated

import typer
from rich.markup import escape

from memgrid.cli import campaign, model, pool
from memgrid.cli.explain import explain
from memgrid.cli.options import remember_globally
from memgrid.errors import InvalidError, MemgridError
from memgrid.log import get_logger

ENTRY_POINTS = "memgrid.cli"
BAD_INPUT = 2
FAILURE = 1
INTERRUPTED = 130


def build_app() -> typer.Typer:
    """All commands; an extra that is not installed brings none."""
    app = typer.Typer(
        name="memgrid",
        help="Memory for language models, computed by volunteers, checked, and shared.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_globally)
    pool.mount(app)
    app.add_typer(campaign.app, name="campaign")
    app.add_typer(model.app, name="model")
    app.command(name="explain")(explain)
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            app.add_typer(entry.load(), name=entry.name)
        except ModuleNotFoundError as error:
            app.command(name=entry.name, help=f"Needs: pip install {escape(f'memgrid[{entry.name}]')}")(
                _missing(entry.name, error.name or "a library")
            )
    return app


def main() -> None:
    """Run the command line. Ends with 2 for bad input, 1 for a failure that has one clear line, 130 for Ctrl-C."""
    try:
        build_app()()
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


def _globally(
    grid: Annotated[
        str | None, typer.Option("--grid", help="The grid: https://host:port", show_default=False)
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="An operator's token, or @FILE.", show_default=False)
    ] = None,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        typer.echo(version("memgrid"))
        raise typer.Exit
    remember_globally(grid, token)


def _missing(extra: str, library: str) -> Callable[[], None]:
    def command() -> None:
        raise InvalidError(f"memgrid {extra} needs {library}: pip install 'memgrid[{extra}]'")

    return command


def _fail(error: MemgridError, exit_code: int) -> None:
    typer.echo(f"memgrid: {error}", err=True)
    raise SystemExit(exit_code) from None
