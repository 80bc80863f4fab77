"""Builds a volunteer from its parts and runs it; decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from memgrid.channel import backoff_s, told_wait_s
from memgrid.clock import Clock, SystemClock
from memgrid.endpoint import GridEndpoint, async_http_client, discover
from memgrid.enrolment import Enrolment
from memgrid.errors import BusyError, UnavailableError
from memgrid.units import HostFacts
from memgrid_volunteer.agent import Agent
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.correspondence import Correspondence
from memgrid_volunteer.deliveries import Deliveries
from memgrid_volunteer.desk import Desk
from memgrid_volunteer.diary import Diary, Tell
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.host import default_threads, host_facts
from memgrid_volunteer.isolation import Folders, Isolation
from memgrid_volunteer.kept import gather
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.sandbox import WORKER_MODULE, Sandbox
from memgrid_volunteer.session import CoordinatorSession, enrol
from memgrid_volunteer.status import devices_of
from memgrid_volunteer.stopping import Stopping
from memgrid_volunteer.telling import busy_line
from memgrid_volunteer.transfers import Transfers
from memgrid_volunteer.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: see the command line's help."""

    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    cache_bytes: int = 20 << 30
    worker_module: str = WORKER_MODULE
    isolation: Isolation | None = None
    """None: the strongest that works."""
    backoff: Backoff = backoff_s


async def join(url: str, home: Home, *, label: str, invite_code: str, options: Options, tell: Tell) -> Membership:
    """Make this machine a host of a grid; joining again is harmless. Raises MemgridError."""
    # Asked first, for it fails fast: the worker needs seconds to start.
    await asyncio.to_thread(discover, url)
    home.make()
    async with _worker(home, options) as sandbox:
        facts = await _facts(sandbox)
    endpoint, enrolment = await _enrol(url, home, label, facts, invite_code, tell)
    membership = Membership(
        url=_pinned(endpoint),
        name=endpoint.name,
        account_id=enrolment.account_id,
        host_id=enrolment.host_id,
        label=label,
    )
    home.join(membership)
    Diary(home, facts, SystemClock(), lambda line: None).stands("stopped")
    return membership


async def run(home: Home, options: Options, tell: Tell, stopping: Stopping) -> None:
    """Work for the grid that was joined, until stopped or through. Raises MemgridError."""
    membership = home.membership()
    home.make()
    with home.lock():
        Control(home.folder).restarted(SystemClock().now())
        gather(home.work, SystemClock().now())
        async with _worker(home, options) as sandbox:
            facts = await _facts(sandbox)
            tell(f"worker ready: {facts.devices[0].name}, isolation {facts.isolation}")
            endpoint = await _find(membership, options, tell)
            async with async_http_client(endpoint) as client:
                agent = _build(home, membership, facts, sandbox, client, options, tell)
                stopping.attach(agent)
                await agent.run()
        tell("stopped")


async def leave(home: Home) -> None:
    """Give everything back and forget the grid; the account keeps its credit. Raises MemgridError."""
    membership = home.membership()
    with home.lock():
        session = CoordinatorSession(
            membership.url,
            home=None,
            key=home.key(),
            host_id=membership.host_id,
            facts=_NOTHING_TO_SHOW,
            clock=SystemClock(),
        )
        try:
            await session.leave()
        finally:
            await session.close()
        for folder in (home.cache, home.outbox, home.work):
            shutil.rmtree(folder, ignore_errors=True)
        home.forget()


async def _enrol(
    url: str, home: Home, label: str, facts: HostFacts, invite_code: str, tell: Tell
) -> tuple[GridEndpoint, Enrolment]:
    """Wait in the crowd before the grid's door, if there is one."""
    rng, ticket = random.Random(), ""
    while True:
        try:
            return await enrol(
                url, home=None, key=home.key(), label=label, facts=facts, invite_code=invite_code, ticket=ticket
            )
        except BusyError as busy:
            ticket, pause_s = busy.ticket, told_wait_s(busy, rng)
            tell(busy_line(pause_s))
            await asyncio.sleep(pause_s)


_NOTHING_TO_SHOW = HostFacts(
    os="", arch="", cpu_count=1, memory_bytes=0, devices=(), client_version="", isolation="none"
)


@contextlib.asynccontextmanager
async def _worker(home: Home, options: Options) -> AsyncIterator[Sandbox]:
    folders = Folders(cache=home.cache, work=home.work)
    sandbox = Sandbox(
        folders,
        threads=options.threads or default_threads(),
        module=options.worker_module,
        isolation=options.isolation,
    )
    try:
        yield sandbox
    finally:
        await sandbox.kill()


async def _facts(sandbox: Sandbox) -> HostFacts:
    hello = await sandbox.start()
    return host_facts(tuple(device.facts for device in hello.devices), await sandbox.isolation())


async def _find(membership: Membership, options: Options, tell: Tell) -> GridEndpoint:
    """The grid, when it answers: a volunteer outlasts its coordinator's absence from the first moment on."""
    rng, failures = random.Random(), 0
    while True:
        try:
            return await asyncio.to_thread(discover, membership.url)
        except UnavailableError as error:
            failures += 1
            if failures == 1:
                tell(f"{error}; trying again until it does")
            await asyncio.sleep(options.backoff(failures, rng))


def _build(
    home: Home,
    membership: Membership,
    facts: HostFacts,
    sandbox: Sandbox,
    client: httpx.AsyncClient,
    options: Options,
    tell: Tell,
) -> Agent:
    clock: Clock = SystemClock()
    rng = random.Random()
    news = asyncio.Event()
    desk, outbox = Desk(), Outbox(home.outbox)
    diary = Diary(home, facts, clock, tell)
    cache = BlobCache(home.cache, limit_bytes=options.cache_bytes)
    session = CoordinatorSession(
        membership.url, home=None, key=home.key(), host_id=membership.host_id, facts=facts, clock=clock
    )
    transfers = Transfers(client, cache, lambda: session.token, rng, backoff=options.backoff)
    workbench = Workbench(
        desk=desk,
        outbox=outbox,
        cache=cache,
        transfers=transfers,
        sandbox=sandbox,
        device_id=next(iter(devices_of(facts.devices))),
        work=home.work,
        diary=diary,
        clock=clock,
        news=news,
    )
    deliveries = Deliveries(outbox, transfers, diary, news)
    correspondence = Correspondence(
        session=session,
        workbench=workbench,
        deliveries=deliveries,
        desk=desk,
        outbox=outbox,
        cache=cache,
        diary=diary,
        clock=clock,
        rng=rng,
        news=news,
        limits=options.limits,
        backoff=options.backoff,
    )
    return Agent(
        home=home,
        correspondence=correspondence,
        workbench=workbench,
        deliveries=deliveries,
        desk=desk,
        outbox=outbox,
        diary=diary,
        clock=clock,
        news=news,
        limits=options.limits,
    )


def _pinned(endpoint: GridEndpoint) -> str:
    return endpoint.url if endpoint.fingerprint is None else f"{endpoint.url}#sha256={endpoint.fingerprint}"
