"""What attackers do that no honest host would, and how to see that it got them nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx
from sqlalchemy import Connection, func, select

from memgrid.digest import Digest, digest_of
from memgrid.endpoint import GridEndpoint
from memgrid.testing import SimulatedHost, SimulatedWork
from memgrid.testing_faults import Peer
from memgrid.units import (
    LeaseId,
    LeaseOffer,
    Output,
    Reason,
    ReasonCode,
    Release,
    SyncAnswer,
    UnitKey,
    UploadOrder,
    VerdictNotice,
)
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.store import leases, units
from memgrid_coordinator.store.tables import credits
from tests.grids import eventually, simulated_hosts

TEXT = "The valve opens at three bar and closes at two. " * 8
TWO = {"min_replicas": 2, "max_replicas": 2}
"""Redundant computing: what two accounts report alike is ordered from one of them."""
CHUNKS = {"layout": "independent", "chunk_tokens": 32, "wrap": "plain"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All that an attacker wants to change: what is credited, what counts, what is kept, what is published."""

    credit_lines: int
    units: dict[str, int]
    blobs: frozenset[Digest]
    cubes: tuple[str, ...]

    @property
    def accepted(self) -> int:
        return self.units.get("accepted", 0)


async def standing(coordinator: Coordinator) -> Standing:
    def query(connection: Connection) -> tuple[int, dict[str, int]]:
        lines = connection.execute(select(func.count()).select_from(credits)).scalar_one()
        return int(lines), units.count_by_state(connection)

    lines, by_state = await coordinator.store.read(query)
    kept = await asyncio.to_thread(coordinator.blobs.kept_after, None, 10_000)
    cubes = await coordinator.publishing.search("")
    return Standing(
        credit_lines=lines,
        units=by_state,
        blobs=frozenset(blob.digest for blob in kept),
        cubes=tuple(sorted(f"{cube.repository}:{cube.tag}" for cube in cubes)),
    )


async def credit_lines_of(coordinator: Coordinator, lease_id: LeaseId) -> int:
    query = select(func.count()).select_from(credits).where(credits.c.lease_id == lease_id)
    return int(await coordinator.store.read(lambda connection: connection.execute(query).scalar_one()))


async def lease_states(coordinator: Coordinator, lease_id: LeaseId) -> tuple[str, Reason | None]:
    """The state of a lease and why it is so."""
    found = await coordinator.store.read(lambda connection: leases.by_id(connection, [lease_id]))
    return found[lease_id].state.value, found[lease_id].reason


async def refused_reason(host: SimulatedHost, work: SimulatedWork) -> ReasonCode:
    """Report something, and be turned down."""
    (ack,) = (await host.sync(work=[work])).acks
    assert not ack.accepted and ack.reason is not None, "the report was taken"
    return ack.reason.code


def with_content(work: SimulatedWork, content: bytes) -> SimulatedWork:
    """The same report on other bytes."""
    output = Output(name=work.claim.outputs[0].name, digest=digest_of(content), size_bytes=len(content))
    return replace(work, content=content, claim=replace(work.claim, outputs=(output,)))


def with_sketch(work: SimulatedWork, sketch: bytes) -> SimulatedWork:
    return replace(work, sketch=sketch, claim=replace(work.claim, sketch_digest=digest_of(sketch)))


@asynccontextmanager
async def colluders(endpoint: GridEndpoint) -> AsyncIterator[list[SimulatedHost]]:
    """Two accounts of one attacker: together they confirm whatever he likes."""
    async with simulated_hosts(endpoint, 2) as hosts:
        yield hosts


async def ordered(
    coordinator: Coordinator,
    hosts: Sequence[SimulatedHost],
    work_of: Callable[[LeaseOffer], Awaitable[SimulatedWork]],
    *,
    tried: set[UnitKey] | None = None,
) -> tuple[SimulatedHost, UploadOrder, SimulatedWork]:
    """Let colluders report one unit alike, none of those in `tried`; whoever is asked for it, the order, the report.

    `work_of(offer)` makes what each of them reports.
    """
    tried = set() if tried is None else tried
    offered = [{offer.unit_key: offer for offer in (await host.sync(want=64)).leases} for host in hosts]
    chosen = next(key for key in offered[0] if key not in tried and all(key in offers for offers in offered))
    tried.add(chosen)
    works: dict[LeaseId, SimulatedWork] = {}
    for host, offers in zip(hosts, offered, strict=True):
        work = works[offers[chosen].lease_id] = await work_of(offers[chosen])
        unwanted = Reason(code=ReasonCode.OWNER_PAUSED, text="")
        back = [
            Release(lease_id=offer.lease_id, fence=offer.fence, reason=unwanted)
            for offer in offers.values()
            if offer.unit_key != chosen
        ]
        (ack,) = (await host.sync(work=[work], released=back)).acks
        assert ack.accepted, ack.reason

    async def order() -> tuple[SimulatedHost, UploadOrder, SimulatedWork] | None:
        for host in hosts:
            for one in (await host.sync()).uploads:
                return host, one, works[one.lease_id]
        return None

    found: tuple[SimulatedHost, UploadOrder, SimulatedWork] = await eventually(order)
    return found


async def verdict_on(host: SimulatedHost, lease_id: LeaseId) -> VerdictNotice:
    async def told() -> tuple[VerdictNotice, ...]:
        return (await host.sync(awaiting=[lease_id])).verdicts

    (verdict,) = await eventually(told)
    return verdict


def only(answer: SyncAnswer) -> LeaseOffer:
    (offer,) = answer.leases
    return offer


def visitor(endpoint: GridEndpoint, token: str | None = None) -> httpx.AsyncClient:
    """A client that sends paths as they are written."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=endpoint.url, verify=tls_of(endpoint), headers=headers, timeout=20)


def tls_of(endpoint: GridEndpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=endpoint.certificate_pem)
    context.check_hostname = False
    return context


@asynccontextmanager
async def raw_line(coordinator: Coordinator, endpoint: GridEndpoint) -> AsyncIterator[Peer]:
    """A TLS connection to the data plane, to say on it whatever one likes."""
    port = coordinator.address.http_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls_of(endpoint))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
