"""`memgrid campaign`: submit work to a grid and follow it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from memgrid.campaign import CampaignFile
from memgrid.campaign_sources import LocalSource, find_sources
from memgrid.campaign_status import COMPLETED, CampaignStatus, status_from_message
from memgrid.cli.control import control_plane, find_grid
from memgrid.cli.following import follow
from memgrid.cli.options import GridOption, JsonOption, TokenOption, grid_of, print_json, token_of
from memgrid.cli.submitting import Submitted, submit_campaign
from memgrid.cli.watching import display_for, picture, summary_of
from memgrid.clock import SystemClock
from memgrid.cube.identity import identity_of_folder
from memgrid.endpoint import GridEndpoint
from memgrid.errors import InvalidError, UnknownModelError
from memgrid.v1 import campaigns_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Submit work to a grid and follow it.")

FileArgument = Annotated[Path, typer.Argument(help="The campaign file.", show_default=False)]
IdArgument = Annotated[str, typer.Argument(help="A campaign, or the beginning of its id.", show_default=False)]


@app.command()
def validate(file: FileArgument, as_json: JsonOption = False) -> None:
    """Check a campaign file, its sources and a local model, without talking to anybody."""
    campaign, sources = read_campaign(file)
    if as_json:
        print_json({"name": campaign.name, "sources": [source.uri for source in sources], "valid": True})
        return
    total = sum(source.size_bytes for source in sources)
    typer.echo(f"{file.name} is valid: {len(sources)} sources, {total:,} bytes, for {campaign.model}")


@app.command()
def submit(
    file: FileArgument,
    grid: GridOption = None,
    token: TokenOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a campaign, bring its sources (and its model, if it is a folder) to the grid, and start it."""
    campaign, sources = read_campaign(file)
    endpoint, secret = find_grid(grid_of(grid)), token_of(token)
    console = Console(stderr=as_json)
    try:
        submitted = asyncio.run(submit_campaign(endpoint, secret, campaign, sources, file.parent, console))
    except UnknownModelError as error:
        # To the grid something it does not have; to who wrote the file, a mistake in it.
        raise InvalidError(f"{file.name}: model: {error}") from None
    status = submitted.status
    if not as_json:
        console.print(_submission_line(submitted), highlight=False)
    if watch:
        status = _watch(endpoint, secret, status.campaign_id, console)
    if as_json:
        print_json({**status.to_json(), "units_reused": submitted.units_reused})
    if watch and status.state != COMPLETED:
        raise typer.Exit(1)


@app.command(name="watch")
def watch_(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show how a campaign goes, until it ends; fails if the campaign does."""
    status = _watch(find_grid(grid_of(grid)), token_of(token), campaign_id, Console(stderr=as_json))
    if as_json:
        print_json(status.to_json())
    if status.state != COMPLETED:
        raise typer.Exit(1)


@app.command()
def status(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show how a campaign stands."""
    _show(asyncio.run(_get(find_grid(grid_of(grid)), token_of(token), campaign_id)), as_json)


@app.command()
def cancel(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """End a campaign; what other campaigns need goes on."""
    _show(asyncio.run(_cancel(find_grid(grid_of(grid)), token_of(token), campaign_id)), as_json)


@app.command(name="list")
def list_(
    grid: GridOption = None,
    token: TokenOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List campaigns, newest first."""
    found = asyncio.run(_list(find_grid(grid_of(grid)), token_of(token), limit))
    if as_json:
        print_json([campaign.to_json() for campaign in found])
        return
    table = Table(box=None, header_style="bold")
    for heading in ("campaign", "name", "state", "documents", "tokens", "begun"):
        table.add_column(heading, no_wrap=True)
    for campaign in found:
        begun = campaign.created_at.astimezone().strftime("%Y-%m-%d %H:%M") if campaign.created_at else ""
        tokens = f"{campaign.tokens_accepted:,} of {campaign.tokens:,}"
        documents = str(len(campaign.documents))
        table.add_row(campaign.campaign_id[:12], campaign.name, campaign.state, documents, tokens, begun)
    Console().print(table if found else "no campaigns yet")


def read_campaign(file: Path) -> tuple[CampaignFile, tuple[LocalSource, ...]]:
    """A campaign with its sources, all that can be checked here checked; raises InvalidError."""
    campaign = CampaignFile.load(file)
    sources = find_sources(campaign, file.parent, where=file.name)
    if campaign.model_is_folder:
        identity_of_folder(file.parent / Path(campaign.model).expanduser())
    return campaign, sources


def _submission_line(submitted: Submitted) -> str:
    status = submitted.status
    reused = f", {submitted.units_reused:,} of them known already" if submitted.units_reused else ""
    return (
        f"campaign {status.campaign_id}: {len(status.documents)} documents, {status.tokens:,} tokens,"
        f" {status.units:,} units{reused}"
    )


def _watch(endpoint: GridEndpoint, token: str | None, campaign_id: str, console: Console) -> CampaignStatus:
    display = display_for(console, SystemClock())
    try:
        return asyncio.run(follow(endpoint, token, campaign_id, display))
    except KeyboardInterrupt:
        display.say(f"still running; see: memgrid campaign watch {campaign_id}")
        raise typer.Exit(130) from None
    finally:
        display.close()


def _show(campaign: CampaignStatus, as_json: bool) -> None:
    if as_json:
        print_json(campaign.to_json())
    elif (console := Console()).is_terminal:
        console.print(picture(campaign))
    else:
        typer.echo(summary_of(campaign))


async def _get(endpoint: GridEndpoint, token: str | None, campaign_id: str) -> CampaignStatus:
    async with control_plane(endpoint, token) as plane:
        return status_from_message(await plane.campaigns.Get(pb.GetCampaignRequest(campaign_id=campaign_id)))


async def _cancel(endpoint: GridEndpoint, token: str | None, campaign_id: str) -> CampaignStatus:
    async with control_plane(endpoint, token) as plane:
        return status_from_message(await plane.campaigns.Cancel(pb.GetCampaignRequest(campaign_id=campaign_id)))


async def _list(endpoint: GridEndpoint, token: str | None, limit: int) -> list[CampaignStatus]:
    async with control_plane(endpoint, token) as plane:
        answer = await plane.campaigns.List(pb.ListCampaignsRequest(limit=limit))
        return [status_from_message(campaign) for campaign in answer.campaigns]
