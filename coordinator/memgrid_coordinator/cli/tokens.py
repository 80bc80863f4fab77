"""`memgrid coordinator token` and `audit`: who may do what, and what they did."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated

import typer

from memgrid.cli.kept import columns
from memgrid.cli.options import JsonOption, print_json
from memgrid_coordinator.cli.opening import DatabaseOption, DataOption, opened
from memgrid_coordinator.records import AccessToken, Act, Role

app = typer.Typer(no_args_is_help=True, help="Give and take back access: owners, operators and readers.")
NameArgument = Annotated[str, typer.Argument(help="What the token is called: who or what uses it.")]


@app.command()
def create(
    name: NameArgument,
    data: DataOption,
    role: Annotated[Role, typer.Option(help="owner, operator, or reader, who sees and changes nothing.")],
    expires_days: Annotated[float | None, typer.Option(min=0.001, help="Days until it ends by itself.")] = None,
    database: DatabaseOption = None,
) -> None:
    """Make a token and print it, this once: only its digest is kept."""
    from memgrid_coordinator.services.access import Access

    lives = None if expires_days is None else timedelta(days=expires_days)
    with opened(data, database) as grid:
        typer.echo(asyncio.run(Access(grid.store, grid.clock).create(grid.caller, name, role, lives)))


@app.command(name="list")
def list_(data: DataOption, as_json: JsonOption = False, database: DatabaseOption = None) -> None:
    """List the tokens that were given, newest first."""
    from memgrid_coordinator.services.access import Access

    with opened(data, database) as grid:
        found, now = asyncio.run(Access(grid.store, grid.clock).all(grid.caller)), grid.clock.now()
    if as_json:
        print_json([_token_json(token) for token in found])
        return
    rows = [
        (token.name, token.role.value, token.state_at(now), _time(token.created_at), _time(token.expires_at))
        for token in found
    ]
    heading = ("name", "role", "state", "given", "ends")
    typer.echo(columns([heading, *rows]) if rows else "no tokens were given, but for the one in keys/operator.token")


@app.command()
def revoke(name: NameArgument, data: DataOption, database: DatabaseOption = None) -> None:
    """Take a token back; from its next call on it is refused."""
    from memgrid_coordinator.services.access import Access

    with opened(data, database) as grid:
        asyncio.run(Access(grid.store, grid.clock).revoke(grid.caller, name))
    typer.echo(f"token {name!r} is revoked")


def audit(
    data: DataOption,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, newest first.")] = 50,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Show what owners and operators did: when, who, what."""
    from memgrid_coordinator.services.access import Access

    with opened(data, database) as grid:
        acts = asyncio.run(Access(grid.store, grid.clock).acts(grid.caller, limit))
    if as_json:
        print_json([_act_json(act) for act in acts])
        return
    rows = [(_time(act.at), act.who, act.role.value, act.action, act.subject, act.detail) for act in acts]
    heading = ("when", "who", "role", "did", "to", "")
    typer.echo(columns([heading, *rows]) if rows else "nothing yet")


def _time(at: object) -> str:
    from datetime import datetime

    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if isinstance(at, datetime) else ""


def _token_json(token: AccessToken) -> dict[str, str | None]:
    ends = [None if at is None else at.isoformat() for at in (token.created_at, token.expires_at, token.revoked_at)]
    named = {"token_id": token.token_id, "name": token.name, "role": token.role.value}
    return {**named, **dict(zip(("created_at", "expires_at", "revoked_at"), ends, strict=True))}


def _act_json(act: Act) -> dict[str, str]:
    return {
        "at": act.at.isoformat(),
        "who": act.who,
        "role": act.role.value,
        "action": act.action,
        "subject": act.subject,
        "detail": act.detail,
    }
