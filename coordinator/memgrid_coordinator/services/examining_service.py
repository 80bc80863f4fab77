"""Whether a coordinator serves the folder, and answers as volunteers would ask it."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from memgrid.channel import open_channel
from memgrid.endpoint import GridEndpoint, discover
from memgrid.errors import MemgridError
from memgrid.findings import Finding, Level
from memgrid.v1 import volunteers_pb2 as pb
from memgrid.v1.volunteers_pb2_grpc import VolunteersStub
from memgrid_coordinator.data_folder import occupant
from memgrid_coordinator.settings import Settings

_ANSWER_LIMIT_S = 10.0


def answers(settings: Settings) -> Iterator[Finding]:
    """The running coordinator, or whether one could start."""
    pid, url = occupant(settings.data), _told(settings.data / "endpoint.json")
    if pid is None:
        if url is not None:
            advice = "see the end of its log, then start it again; what was acknowledged is on disk"
            text = "the coordinator ended without saying so"
            yield Finding(level=Level.WARNING, about="service", text=text, advice=advice)
        else:
            yield Finding(level=Level.FACT, about="service", text="no coordinator serves this folder")
        yield from _free_ports(settings)
        return
    if url is None:
        text = f"process {pid} has the folder and is not ready yet, or is draining"
        yield Finding(level=Level.WARNING, about="service", text=text, advice="see its log")
        return
    yield Finding(level=Level.FACT, about="service", text=f"process {pid} serves {url.partition('#')[0]}")
    yield _asked(url)


def _asked(url: str) -> Finding:
    """One question on each plane, through the address that volunteers are given."""
    begun = time.perf_counter()  # a duration, not a time of day
    try:
        with tempfile.TemporaryDirectory() as home:  # nothing is remembered of it
            endpoint = discover(url, home=Path(home))
        asyncio.run(_challenge(endpoint))
    except (MemgridError, TimeoutError) as error:
        text = f"it does not answer at its own address: {error or 'no answer in time'}"
        advice = "does --public-name lead here, are both ports open, is the certificate the one it was given?"
        return Finding(level=Level.BAD, about="service", text=text, advice=advice)
    took_s = time.perf_counter() - begun
    return Finding(level=Level.OK, about="service", text=f"HTTP and gRPC answer, both in {1000 * took_s:.0f} ms")


async def _challenge(endpoint: GridEndpoint) -> None:
    channel = open_channel(endpoint, lambda: None)
    try:
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            await VolunteersStub(channel).GetChallenge(pb.GetChallengeRequest())
    finally:
        await channel.close()


def _free_ports(settings: Settings) -> Iterator[Finding]:
    for plane, port in (("HTTP", settings.http_port), ("gRPC", settings.grpc_port)):
        with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                text = f"{plane}: {settings.host}:{port} can't be had: {error.strerror}"
                advice = f"another program has it: ss -ltnp 'sport = :{port}'; or give --{plane.lower()}-port"
                yield Finding(level=Level.WARNING, about="ports", text=text, advice=advice)
            else:
                yield Finding(level=Level.OK, about="ports", text=f"{plane}: {settings.host}:{port} is free")


def _told(path: Path) -> str | None:
    """The address, as the coordinator wrote it when it was ready."""
    try:
        return str(json.loads(path.read_text())["url"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
