"""The grid as this machine reaches it: both planes, the certificate, and the clocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx

from memgrid.channel import open_channel
from memgrid.clock import Clock
from memgrid.endpoint import GridEndpoint, GridUrl, discover, http_client
from memgrid.errors import MemgridError, UnavailableError, UntrustedGridError
from memgrid.findings import Finding, Level
from memgrid.text import seconds_text
from memgrid_volunteer.home import Membership
from memgrid_volunteer.session import CALL_LIMIT_S, get_challenge

SKEW_MAX_S = 30.0
"""Deadlines and signatures bear minutes; more than this is a clock that nobody sets."""
_SLOW_S = 3.0


def grid(membership: Membership, clock: Clock) -> Iterator[Finding]:
    """What the agent does first, step by step, with the time each takes."""
    yield Finding(level=Level.FACT, about="grid", text=f"{membership.name} at {GridUrl.parse(membership.url).base}")
    yield Finding(level=Level.FACT, about="grid", text=f"host {membership.host_id}")
    begun_s = time.perf_counter()  # a duration, not a time of day
    try:
        endpoint = discover(membership.url)
    except UntrustedGridError as error:
        advice = "ask the grid's owner whether the certificate was renewed; if not, somebody stands between you"
        yield Finding(level=Level.BAD, about="certificate", text=str(error), advice=advice)
        return
    except (UnavailableError, MemgridError) as error:
        advice = "is this machine on the network, does a firewall let HTTPS out, is the grid up for others?"
        yield Finding(level=Level.BAD, about="data plane", text=str(error), advice=advice)
        return
    yield _answered("data plane", time.perf_counter() - begun_s)
    yield _certificate(endpoint)
    yield from _skew(endpoint, clock)
    yield asyncio.run(_control(endpoint))


def skew(told: datetime, sent: datetime, heard: datetime) -> Finding:
    """How far this machine's clock is from the grid's, which told its own somewhere between two moments here.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    >>> skew(noon, noon.replace(minute=5), noon.replace(minute=5, second=1)).text
    'this clock is 5 min 0 s ahead of the grid'
    """
    # The grid tells whole seconds.
    ahead_s = max((sent - told).total_seconds() - 1.0, 0.0)
    behind_s = max((told - heard).total_seconds(), 0.0)
    off_s = max(ahead_s, behind_s)
    if off_s <= SKEW_MAX_S:
        return Finding(level=Level.OK, about="clock", text="as the grid's")
    side = "ahead of" if ahead_s else "behind"
    text = f"this clock is {seconds_text(round(off_s + (1.0 if ahead_s else 0.0)))} {side} the grid"
    return Finding(
        level=Level.BAD, about="clock", text=text, advice="let the system set it: timedatectl set-ntp true"
    )


def _skew(endpoint: GridEndpoint, clock: Clock) -> Iterator[Finding]:
    try:
        with http_client(endpoint) as client:
            sent = clock.now()
            told = client.get("/v1/grid").headers.get("date", "")
            heard = clock.now()
        yield skew(parsedate_to_datetime(told), sent, heard)
    except (httpx.HTTPError, ValueError, TypeError) as error:
        yield Finding(level=Level.WARNING, about="clock", text=f"the grid does not tell its own: {error}")


def _certificate(endpoint: GridEndpoint) -> Finding:
    if not endpoint.is_encrypted:
        return Finding(level=Level.WARNING, about="certificate", text="none: plain HTTP, to this machine only")
    if endpoint.fingerprint is None:
        return Finding(level=Level.OK, about="certificate", text="vouched for by this machine's authorities")
    return Finding(level=Level.OK, about="certificate", text=f"the pinned one, sha256={endpoint.fingerprint}")


async def _control(endpoint: GridEndpoint) -> Finding:
    begun_s = time.perf_counter()
    channel = open_channel(endpoint, lambda: None)
    try:
        from memgrid.v1 import volunteers_pb2_grpc as pb_grpc

        async with asyncio.timeout(CALL_LIMIT_S):
            await get_challenge(pb_grpc.VolunteersStub(channel), "")
    except (MemgridError, TimeoutError) as error:
        advice = f"does a firewall let {endpoint.grpc_target} through? Proxies often stop HTTP/2"
        return Finding(level=Level.BAD, about="control plane", text=str(error) or "no answer in time", advice=advice)
    finally:
        await channel.close()
    return _answered("control plane", time.perf_counter() - begun_s)


def _answered(about: str, took_s: float) -> Finding:
    text = f"answers in {seconds_text(took_s)}"
    if took_s > _SLOW_S:
        return Finding(level=Level.WARNING, about=about, text=text, advice="a slow line, or a grid with much to do")
    return Finding(level=Level.OK, about=about, text=text)
