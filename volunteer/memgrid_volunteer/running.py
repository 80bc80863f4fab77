"""What the commands of a volunteer do: join a grid, run, leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sys
from dataclasses import replace

from memgrid.channel import told_wait_s
from memgrid.clock import SystemClock
from memgrid.endpoint import GridEndpoint, discover
from memgrid.enrolment import Enrolment
from memgrid.errors import BusyError
from memgrid.units import HostFacts
from memgrid_volunteer.building import Options, build
from memgrid_volunteer.cluster.words import Nodes
from memgrid_volunteer.diary import Diary, Tell
from memgrid_volunteer.home import Home, Membership, Place
from memgrid_volunteer.host import host_facts
from memgrid_volunteer.kept import gather
from memgrid_volunteer.machine import machine_here, worker
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.places import checked_share
from memgrid_volunteer.sandbox import Sandbox
from memgrid_volunteer.service.notify import notifier
from memgrid_volunteer.session import CoordinatorSession, enrol
from memgrid_volunteer.shares import SHARE_DEFAULT
from memgrid_volunteer.status import Tally, VolunteerStatus
from memgrid_volunteer.stopping import Stopping
from memgrid_volunteer.telling import busy_line

__all__ = ["Options", "join", "leave", "ray_nodes", "run"]


async def join(
    url: str,
    home: Home,
    *,
    label: str,
    invite_code: str,
    options: Options,
    tell: Tell,
    share: int | None = None,
) -> Membership:
    """Make this machine a host of a grid, beside others if there are any; joining again is harmless.

    `share`: None leaves it as it was. Raises MemgridError.
    """
    # Asked first, for it fails fast: the worker needs seconds to start.
    await asyncio.to_thread(discover, url)
    place = home.place_for(url)
    before = place.membership().share if place.has_joined else SHARE_DEFAULT
    wanted = checked_share(before if share is None else share)
    home.make()
    async with worker(home, options.workers) as sandbox:
        facts = await _facts(sandbox)
    place.make_place()
    endpoint, enrolment = await _enrol(url, place, label, facts, invite_code, tell)
    membership = Membership(
        url=_pinned(endpoint),
        name=endpoint.name,
        account_id=enrolment.account_id,
        host_id=enrolment.host_id,
        label=label,
        share=wanted,
    )
    place.join(membership)
    Diary(home, facts, SystemClock(), lambda line: None).stands("stopped")
    return membership


async def run(home: Home, options: Options, tell: Tell, stopping: Stopping) -> None:
    """Work for the grids that were joined, until stopped or through. Raises MemgridError."""
    home.joined()
    home.make()
    with home.lock(), (options.nodes or contextlib.nullcontext)() as nodes:
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
            agent = build(home, machine, options, told, nodes)
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


async def leave(home: Home, place: Place | None = None) -> None:
    """Give everything back and forget a grid; the account keeps its credit. Raises MemgridError."""
    place = place or home.find(None)
    membership = place.membership()
    with home.lock():
        session = CoordinatorSession(
            membership.url,
            home=None,
            key=place.key(),
            host_id=membership.host_id,
            facts=_NOTHING_TO_SHOW,
            clock=SystemClock(),
        )
        try:
            await session.leave()
        finally:
            await session.close()
        shutil.rmtree(place.outbox, ignore_errors=True)
        place.forget()
        if home.places():
            _forget_in_status(home, membership)
        else:
            home.empty()


def _forget_in_status(home: Home, left: Membership) -> None:
    """What was done for it is no part of what the status tells of the others."""
    status = VolunteerStatus.from_json(home.status())
    grids = tuple(grid for grid in status.grids if grid.url != left.page_url)
    home.write_status(replace(status, grids=grids, tally=Tally.sum_of([grid.tally for grid in grids])).to_json())


async def _enrol(
    url: str, place: Place, label: str, facts: HostFacts, invite_code: str, tell: Tell
) -> tuple[GridEndpoint, Enrolment]:
    """Wait in the crowd before the grid's door, if there is one."""
    rng, ticket = random.Random(), ""
    while True:
        try:
            return await enrol(
                url, home=None, key=place.key(), label=label, facts=facts, invite_code=invite_code, ticket=ticket
            )
        except BusyError as busy:
            ticket, pause_s = busy.ticket, told_wait_s(busy, rng)
            tell(busy_line(pause_s))
            await asyncio.sleep(pause_s)


_NOTHING_TO_SHOW = HostFacts(
    os="", arch="", cpu_count=1, memory_bytes=0, devices=(), client_version="", isolation="none"
)


def ray_nodes(address: str) -> contextlib.AbstractContextManager[Nodes]:
    """The other machines of a Ray cluster. Raises InvalidError or UnavailableError in one line."""
    # Loads Ray, which nobody needs who has no cluster.
    from memgrid_volunteer.cluster.ray_nodes import RayNodes

    return RayNodes(address)


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


def _pinned(endpoint: GridEndpoint) -> str:
    return endpoint.url if endpoint.fingerprint is None else f"{endpoint.url}#sha256={endpoint.fingerprint}"
