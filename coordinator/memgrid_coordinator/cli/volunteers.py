"""`memgrid coordinator invite | ban | unban`: who may take part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from memgrid_coordinator.cli.opening import DatabaseOption, DataOption, Opened, opened

if TYPE_CHECKING:
    from memgrid_coordinator.services.banning import Banning

WhoArgument = Annotated[
    str, typer.Argument(help="A host or an account, or the beginning of its id.", show_default=False)
]


def invite(
    data: DataOption,
    uses: Annotated[int, typer.Option(min=1, help="How many may use it.")] = 1,
    database: DatabaseOption = None,
) -> None:
    """Make an invite code and print it; only its digest is kept."""
    from memgrid_coordinator.services.inviting import Inviting

    with opened(data, database) as grid:
        typer.echo(asyncio.run(Inviting(grid.store, grid.clock).invite(grid.caller, uses)))


def ban(
    who: WhoArgument,
    data: DataOption,
    reason: Annotated[str, typer.Option(help="Why; its owner is told.")] = "no reason given",
    database: DatabaseOption = None,
) -> None:
    """Shut a volunteer out: no log-in, no work, and what its hosts hold or reported undecided counts no more."""
    with opened(data, database) as grid:
        banned = asyncio.run(_banning(grid).ban(grid.caller, who, reason))
    typer.echo(
        f"account {banned.account_id} is banned: {len(banned.hosts)} hosts, {banned.leases_ended} leases ended; "
        f"what it computed and others confirmed stays"
    )


def unban(who: WhoArgument, data: DataOption, database: DatabaseOption = None) -> None:
    """Let a volunteer in again."""
    with opened(data, database) as grid:
        account_id = asyncio.run(_banning(grid).unban(grid.caller, who))
    typer.echo(f"account {account_id} may log in again")


def _banning(grid: Opened) -> Banning:
    from memgrid.signing import SigningKey
    from memgrid_coordinator.services.banning import Banning
    from memgrid_coordinator.services.ordering import JudgingRule

    rule = JudgingRule.of(grid.settings, SigningKey.load_or_create(grid.settings.keys / "grid.key"))
    return Banning(grid.store, grid.clock, rule)
