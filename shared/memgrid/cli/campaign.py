"""`memgrid campaign`: submit work to a grid and follow it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from memgrid.access import token_of
from memgrid.campaign_status import COMPLETED, CampaignStatus, status_from_message
from memgrid.cli.control import control_plane, find_grid
from memgrid.cli.following import follow
from memgrid.cli.options import GridOption, JsonOption, TokenOption, grid_of, print_json
from memgrid.cli.picturing import endings_of, picture, progress_text, summary_of
from memgrid.cli.planning import plan_line, plan_table
from memgrid.cli.results import results_json, results_notes, results_table
from memgrid.cli.retrying import retry_campaign, retry_lines
from memgrid.cli.submitting import Submitted, bring, plan_campaign, submit_campaign
from memgrid.cli.validating import read_campaign, validation_json, validation_text
from memgrid.cli.watching import display_for
from memgrid.clock import SystemClock
from memgrid.endpoint import GridEndpoint
from memgrid.errors import InvalidError, UnknownModelError
from memgrid.v1 import campaigns_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Submit work to a grid and follow it.")

FileArgument = Annotated[Path, typer.Argument(help="The campaign file.", show_default=False)]
IdArgument = Annotated[str, typer.Argument(help="A campaign, or the beginning of its id.", show_default=False)]


@app.command()
def validate(file: FileArgument, as_json: JsonOption = False) -> None:
    """Check a campaign file, its sources and a local model, without talking to anybody."""
    campaign, sources = read_campaign(file, SystemClock().now())
    if as_json:
        print_json(validation_json(campaign, sources))
    else:
        typer.echo(validation_text(file.name, campaign, sources))


@app.command()
def plan(file: FileArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """Show what a campaign would cost on the hosts now alive; its sources are brought, but nothing is started."""
    campaign, sources = read_campaign(file, SystemClock().now())
    endpoint, secret = find_grid(grid_of(grid)), token_of(token)
    console = Console(stderr=as_json)
    brought = bring(endpoint, secret, campaign, sources, file.parent, console)
    with _mistakes_in(file):
        planned = asyncio.run(plan_campaign(endpoint, secret, brought, console))
    if as_json:
        print_json(planned.to_json())
        return
    console.print(plan_line(planned), highlight=False, soft_wrap=True)
    console.print(plan_table(planned))


@app.command()
def submit(
    file: FileArgument,
    grid: GridOption = None,
    token: TokenOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a campaign, bring its sources (and its model, if it is a folder) to the grid, and start it."""
    campaign, sources = read_campaign(file, SystemClock().now())
    endpoint, secret = find_grid(grid_of(grid)), token_of(token)
    console = Console(stderr=as_json)
    brought = bring(endpoint, secret, campaign, sources, file.parent, console)
    with _mistakes_in(file):
        submitted = asyncio.run(submit_campaign(endpoint, secret, brought, console))
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
    _watch_to_the_end(find_grid(grid_of(grid)), token_of(token), campaign_id, as_json)


@app.command()
def status(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show how a campaign stands."""
    _show(_ask("Get", grid, token, campaign_id), as_json)


@app.command()
def pause(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Hand out nothing more of a campaign for now; what hosts hold they may finish."""
    _show(_ask("Pause", grid, token, campaign_id), as_json)


@app.command()
def resume(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Go on with a paused campaign."""
    _show(_ask("Resume", grid, token, campaign_id), as_json)


@app.command()
def cancel(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """End a campaign; what other campaigns need goes on."""
    _show(_ask("Cancel", grid, token, campaign_id), as_json)


@app.command()
def retry(
    campaign_id: IdArgument,
    document: Annotated[
        list[str] | None, typer.Option("--document", help="Only this one, by name; may be given several times.")
    ] = None,
    grid: GridOption = None,
    token: TokenOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show how it goes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Try the documents that failed again; what was accepted is kept."""
    endpoint, secret = find_grid(grid_of(grid)), token_of(token)
    retried = asyncio.run(retry_campaign(endpoint, secret, campaign_id, document or []))
    if as_json and not watch:
        print_json(retried.to_json())
    if not as_json:
        for line in retry_lines(retried):
            typer.echo(line)
    if not retried.documents and retried.left:
        raise typer.Exit(1)
    if watch and retried.documents:
        _watch_to_the_end(endpoint, secret, retried.campaign.campaign_id, as_json)


@app.command()
def results(
    campaign_id: IdArgument, grid: GridOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show what a campaign made: cubes, their quality and digests, and why a document became none."""
    campaign = _ask("Get", grid, token, campaign_id)
    if as_json:
        print_json(results_json(campaign))
        return
    console = Console()
    console.print(results_table(campaign))
    for note in results_notes(campaign):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


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
    for heading in ("campaign", "name", "recipe", "state", "documents", "progress", "begun"):
        table.add_column(heading, no_wrap=True)
    for campaign in found:
        begun = campaign.created_at.astimezone().strftime("%Y-%m-%d %H:%M") if campaign.created_at else ""
        documents, progress = str(len(campaign.documents)), progress_text(campaign)
        named = (campaign.campaign_id[:12], campaign.name, campaign.recipe, campaign.state)
        table.add_row(*named, documents, progress, begun)
    Console().print(table if found else "no campaigns yet")


@contextmanager
def _mistakes_in(file: Path) -> Iterator[None]:
    """A model the grid does not have is, to who wrote the file, a mistake in it."""
    try:
        yield
    except UnknownModelError as error:
        raise InvalidError(f"{file.name}: model: {error}") from None


def _submission_line(submitted: Submitted) -> str:
    status = submitted.status
    documents = f"{len(status.documents)} document{'' if len(status.documents) == 1 else 's'}"
    reused = f", {submitted.units_reused:,} of them known already" if submitted.units_reused else ""
    work = (
        f"{status.units:,} units of study to begin with"
        if status.recipe == "distill"
        else f"{status.tokens:,} tokens, {status.units:,} units"
    )
    return f"campaign {status.campaign_id}: {documents}, {work}{reused}"


def _watch(endpoint: GridEndpoint, token: str | None, campaign_id: str, console: Console) -> CampaignStatus:
    display = display_for(console, SystemClock())
    try:
        return asyncio.run(follow(endpoint, token, campaign_id, display))
    except KeyboardInterrupt:
        display.say(f"still running; see: memgrid campaign watch {campaign_id}")
        raise typer.Exit(130) from None
    finally:
        display.close()


def _watch_to_the_end(endpoint: GridEndpoint, token: str | None, campaign_id: str, as_json: bool) -> None:
    """Fails if the campaign does."""
    status = _watch(endpoint, token, campaign_id, Console(stderr=as_json))
    if as_json:
        print_json(status.to_json())
    if status.state != COMPLETED:
        raise typer.Exit(1)


def _show(campaign: CampaignStatus, as_json: bool) -> None:
    if as_json:
        print_json(campaign.to_json())
    elif (console := Console()).is_terminal:
        console.print(picture(campaign))
    else:
        for line in (*endings_of(campaign), summary_of(campaign)):
            typer.echo(line)


def _ask(
    call: Literal["Get", "Pause", "Resume", "Cancel"], grid: str | None, token: str | None, campaign_id: str
) -> CampaignStatus:
    """The campaign after one of the calls that name it and return it."""
    endpoint, secret = find_grid(grid_of(grid)), token_of(token)

    async def ask() -> CampaignStatus:
        async with control_plane(endpoint, secret) as plane:
            method = getattr(plane.campaigns, call)
            return status_from_message(await method(pb.GetCampaignRequest(campaign_id=campaign_id)))

    return asyncio.run(ask())


async def _list(endpoint: GridEndpoint, token: str | None, limit: int) -> list[CampaignStatus]:
    async with control_plane(endpoint, token) as plane:
        answer = await plane.campaigns.List(pb.ListCampaignsRequest(limit=limit))
        return [status_from_message(campaign) for campaign in answer.campaigns]
