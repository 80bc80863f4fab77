"""`memgrid coordinator serve`: run the coordinator until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from memgrid.log import configure_logging
from memgrid_coordinator.cli.opening import BlobsOption, DatabaseOption, DataOption, settings_of
from memgrid_coordinator.settings import Settings

_NO_SETTINGS = frozenset({"data", "blobs", "json_logs", "log_level", "lease_shortest_s"})


def serve(
    context: typer.Context,
    data: DataOption,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP: data plane, pool, metrics. 0 takes a free port.")] = 7070,
    grpc_port: Annotated[int, typer.Option(help="gRPC: control plane. 0 takes a free port.")] = 7071,
    name: Annotated[str, typer.Option(help="What the grid is called.")] = "memgrid",
    public_name: Annotated[str | None, typer.Option(help="The name volunteers reach it by, if not --host.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="A real certificate chain, PEM.")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    database: DatabaseOption = None,
    keys_folder: Annotated[
        Path | None,
        typer.Option("--keys", help="The grid's keys, where coordinators share a database.", show_default=False),
    ] = None,
    blobs: BlobsOption = None,
    ray: Annotated[str | None, typer.Option(help="Plan, check and assemble on Ray: auto, or an address.")] = None,
    invite_only: Annotated[bool, typer.Option(help="Take volunteers by invitation only.")] = False,
    lease_shortest_s: Annotated[float | None, typer.Option(help="The shortest lease, in seconds.")] = None,
    json_logs: Annotated[bool, typer.Option(help="Log JSON, for machines.")] = False,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Serve until told to stop; SIGTERM and Ctrl-C drain first."""
    configure_logging(level=log_level, as_json=json_logs)
    _allow_connections()
    given: dict[str, object] = {"data": data.resolve(), **_named(context)}
    if blobs is not None:
        given["blobs_url"] = blobs
    if lease_shortest_s is not None:
        given["lease_shortest"] = timedelta(seconds=lease_shortest_s)
    asyncio.run(_serve(settings_of(given)))


def _allow_connections() -> None:
    """Every connection is an open file, and the usual first limit of 1024 is fewer than a small grid has."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not every system lets its own hard limit be reached
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _named(context: typer.Context) -> dict[str, object]:
    """Settings that were given here: what was not may be in the environment, and a default must not hide it."""
    return {
        name: value for name, value in context.params.items() if name not in _NO_SETTINGS and _is_given(context, name)
    }


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


async def _serve(settings: Settings) -> None:
    from memgrid_coordinator.app import Coordinator  # builds need seconds of imports; --help does not

    async with Coordinator(settings) as coordinator:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, coordinator.request_stop)
        typer.echo(f"Volunteers join with:   memgrid volunteer join '{coordinator.address.url}'")
        if coordinator.address.fingerprint is not None:
            typer.echo(f"Certificate fingerprint: sha256 {coordinator.address.fingerprint}")
        typer.echo(f"Owner's token:           {settings.keys / 'operator.token'}")
        await coordinator.until_stopped()
