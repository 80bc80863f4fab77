"""Which commands there are, where each one lives, and what it is for: all that `memgrid --help` must know.

Reading this table takes no time; importing a command's own module brings an HTTP client, numpy or a database.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from memgrid.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable

    import typer


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A word behind `memgrid`."""

    name: str
    home: str
    """`module:attribute` of its function, or of the Typer app with its own commands."""
    help: str
    """The first line of what its own `--help` says."""
    is_group: bool = False
    extra: str = ""
    """The extra that brings its libraries, where the plain installation lacks them."""
    library: str = ""
    """One library of that extra, by which one sees whether it is installed."""

    def load(self) -> Any:
        """The function or the app; raises InvalidError, with what to install, when a library is missing."""
        module, _, attribute = self.home.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not self.extra:
                raise
            missing = error.name or "a library"
            raise InvalidError(f"memgrid {self.name} needs {missing}: pip install 'memgrid[{self.extra}]'") from None

    def mount(self, app: typer.Typer) -> None:
        """Add the command itself."""
        if self.is_group:
            app.add_typer(self.load(), name=self.name)
        else:
            app.command(name=self.name)(self.load())

    def mount_help(self, app: typer.Typer) -> None:
        """Add only its line in the list of commands."""
        app.command(name=self.name, help=self._line())(_only_listed(self.name))

    def _line(self) -> str:
        if self.library and find_spec(self.library) is None:
            return f"Needs: pip install 'memgrid[{self.extra}]'"
        return self.help


def _only_listed(name: str) -> Callable[[], None]:
    def command() -> None:
        raise AssertionError(f"memgrid {name} was listed, not loaded")

    return command


COMMANDS = {
    command.name: command
    for command in (
        Command(name="search", home="memgrid.cli.pool:search", help="Find cubes in a grid's pool."),
        Command(
            name="info",
            home="memgrid.cli.pool:info",
            help="Show what a cube is, what it weighs, what it saves, and whether pulling it pays here.",
        ),
        Command(
            name="pull",
            home="memgrid.cli.pool:pull",
            help="Fetch a cube, verified; a cut download goes on where it was cut.",
        ),
        Command(name="verify", home="memgrid.cli.pool:verify", help="Check every byte of a cube, and who signed it."),
        Command(
            name="ls", home="memgrid.cli.kept:ls", help="List the cubes on this machine, the longest unused first."
        ),
        Command(name="rm", home="memgrid.cli.pool:rm", help="Remove cubes from this machine; the pool keeps them."),
        Command(
            name="chat",
            home="memgrid.cli.chat:chat",
            help="Talk to a model with cubes attached; /help lists what else can be typed.",
        ),
        Command(name="serve", home="memgrid.cli.serve:serve", help="Serve /v1/chat/completions and /v1/models."),
        Command(
            name="campaign",
            home="memgrid.cli.campaign:app",
            help="Submit work to a grid and follow it.",
            is_group=True,
        ),
        Command(name="model", home="memgrid.cli.model:app", help="Bring models to a grid's pool.", is_group=True),
        Command(
            name="explain",
            home="memgrid.cli.explain:explain",
            help="Tell what became of a campaign, unit, lease, host or cube, and why.",
        ),
        Command(
            name="leaderboard",
            home="memgrid.cli.leaderboard:leaderboard",
            help="Show who gave most to a grid: volunteers or teams, of a day, a week, a month or all time.",
        ),
        Command(
            name="simulate",
            home="memgrid_coordinator.cli.simulate:simulate",
            help="Simulate a grid: how much wrong is accepted under which policy, at what cost.",
            extra="coordinator",
            library="pydantic_settings",
        ),
        Command(
            name="coordinator",
            home="memgrid_coordinator.cli:app",
            help="Host a grid: hand out work, check it, publish cubes.",
            is_group=True,
            extra="coordinator",
            library="pydantic_settings",
        ),
        Command(
            name="volunteer",
            home="memgrid_volunteer.cli:app",
            help="Give this machine's idle time to a grid.",
            is_group=True,
            extra="volunteer",
            library="psutil",
        ),
    )
}
