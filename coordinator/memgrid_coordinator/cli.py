"""`memgrid coordinator`: serve a grid, and invite volunteers to it."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from memgrid.errors import InvalidError
from memgrid.log import configure_logging
from memgrid_coordinator.settings import Settings

app = typer.Typer(
    name="coordinator", help="Host a grid: hand out work, check it, publish cubes.", no_args_is_help=True
)
Data = Annotated[Path, typer.Option("--data", help="The data folder; made at the first start.")]


@app.command()
def serve(
    data: Data,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP: data plane, pool, metrics. 0 takes a free port.")] = 7070,
    grpc_port: Annotated[int, typer.Option(help="gRPC: control plane. 0 takes a free port.")] = 7071,
    name: Annotated[str, typer.Option(help="What the grid is called.")] = "memgrid",
    public_name: Annotated[str | None, typer.Option(help="The name volunteers reach it by, if not --host.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="A real certificate chain, PEM.")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL; SQLite in the data folder without.")] = None,
    ray: Annotated[str | None, typer.Option(help="Plan, check and assemble on Ray: auto, or an address.")] = None,
    invite_only: Annotated[bool, typer.Option(help="Take volunteers by invitation only.")] = False,
    lease_shortest_s: Annotated[float | None, typer.Option(help="The shortest lease, in seconds.")] = None,
    json_logs: Annotated[bool, typer.Option(help="Log JSON, for machines.")] = False,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Serve until told to stop; SIGTERM and Ctrl-C drain first."""
    configure_logging(level=log_level, as_json=json_logs)
    given = {
        "data": data.resolve(),
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "name": name,
        "public_name": public_name,
        "certificate": certificate,
        "certificate_key": certificate_key,
        "database": database,
        "ray": ray,
        "invite_only": invite_only,
    }
    if lease_shortest_s is not None:
        given["lease_shortest"] = timedelta(seconds=lease_shortest_s)
    asyncio.run(_serve(_settings(given)))


@app.command()
def invite(data: Data, uses: Annotated[int, typer.Option(min=1, help="How many may use it.")] = 1) -> None:
    """Make an invite code and print it; only its digest is kept."""
    asyncio.run(_invite(_settings({"data": data.resolve()}), uses))


def _settings(given: dict[str, object]) -> Settings:
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidError(f"settings: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


async def _serve(settings: Settings) -> None:
    from memgrid_coordinator.app import Coordinator  # builds need seconds of imports; --help does not

    async with Coordinator(settings) as coordinator:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, coordinator.request_stop)
        typer.echo(f"Volunteers join with:   memgrid volunteer join '{coordinator.address.url}'")
        if coordinator.address.fingerprint is not None:
            typer.echo(f"Certificate fingerprint: sha256 {coordinator.address.fingerprint}")
        typer.echo(f"Operator token:          {settings.keys / 'operator.token'}")
        await coordinator.until_stopped()


async def _invite(settings: Settings, uses: int) -> None:
    from memgrid.clock import SystemClock
    from memgrid_coordinator.app import new_id
    from memgrid_coordinator.services.enrolment import EnrolmentService
    from memgrid_coordinator.services.tokens import Tokens
    from memgrid_coordinator.store.engine import Store

    if not settings.data.is_dir():
        raise InvalidError(f"{settings.data}: no such folder; serve a grid there first")
    store = Store(settings.database_url)
    try:
        service = EnrolmentService(
            store=store, settings=settings, clock=SystemClock(), tokens=Tokens(settings.keys), new_id=new_id
        )
        typer.echo(await service.create_invite(uses))
    finally:
        store.close()
