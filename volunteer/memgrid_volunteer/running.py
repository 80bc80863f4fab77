"""What the commands of a volunteer do: join a grid, run, leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sys

from memgrid.channel import told_wait_s
from memgrid.clock import SystemClock
from memgrid.endpoint import GridEndpoint, async_http_client, discover
from memgrid.enrolment import Enrolment
from memgrid.errors import BusyError, UnavailableError
from memgrid.units import HostFacts
from memgrid_volunteer.building import Options, build
from memgrid_volunteer.diary import Diary, Tell
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.host import host_facts
from memgrid_volunteer.kept import gather
from memgrid_volunteer.machine import machine_here, worker
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.sandbox import Sandbox
from memgrid_volunteer.service.notify import notifier
from memgrid_volunteer.session import CoordinatorSession, enrol
from memgrid_volunteer.stopping import Stopping
from memgrid_volunteer.telling import busy_line

__all__ = ["Options", "join", "leave", "run"]


async def join(url: str, home: Home, *, label: str, invite_code: str, options: Options, tell: Tell) -> Membership:
    """Make this machine a host of a grid; joining again is harmless. Raises MemgridError."""
    # Asked first, for it fails fast: the worker needs seconds to start.
    await asyncio.to_thread(discover, url)
    home.make()
    async with worker(home, options.workers) as sandbox:
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
        async with contextlib.AsyncExitStack() as stack:
            told = _told_to_manager(tell)
            await _open_page(home, options, told, stack)
            notifier().ready()
            async with notifier().starting():
                machine = await machine_here(home, options.workers, options.clock, stack)
                facts = machine.facts
                names = ", ".join(device.name for device in facts.devices)
                told(f"worker ready: {names}, isolation {facts.isolation}")
                endpoint = await _find(membership, options, told)
            client = await stack.enter_async_context(async_http_client(endpoint))
            agent = build(home, membership, machine, client, options, told)
            stopping.attach(agent)
            await agent.run()
            notifier().stopping()
        tell("stopped")


def _told_to_manager(tell: Tell) -> Tell:
    """What the owner is told, a service manager shows, too."""

    def told(line: str) -> None:
        tell(line)
        notifier().status(line)

    return told


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


async def _facts(sandbox: Sandbox) -> HostFacts:
    hello = await sandbox.start()
    return host_facts(tuple(device.facts for device in hello.devices), await sandbox.isolation())


async def _open_page(home: Home, options: Options, tell: Tell, stack: contextlib.AsyncExitStack) -> None:
    """There from the first moment on, for the worker takes seconds to start and the grid may be away for long."""
    home.write_status({**home.status(), "state": "starting", "pid": os.getpid()})
    if options.page_port is not None:
        from memgrid_volunteer.page.server import serve_page

        key = await stack.enter_async_context(serve_page(home, clock=options.clock, port=options.page_port))
        # What lets people in has no place in a log.
        tell(f"its page: {key.url if sys.stdout.isatty() else 'memgrid volunteer page'}")


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


def _pinned(endpoint: GridEndpoint) -> str:
    return endpoint.url if endpoint.fingerprint is None else f"{endpoint.url}#sha256={endpoint.fingerprint}"
