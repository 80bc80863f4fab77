"""Puts a volunteer's parts together; decides nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from memgrid.channel import backoff_s
from memgrid.clock import Clock, SystemClock
from memgrid_volunteer.agent import Agent
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.correspondence import Correspondence
from memgrid_volunteer.deliveries import Deliveries
from memgrid_volunteer.desk import Desk
from memgrid_volunteer.diary import Diary, Tell
from memgrid_volunteer.home import Home, Membership
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.machine import Machine, Workers
from memgrid_volunteer.outbox import Outbox
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.probes.probe import Probe, WatchedDevice
from memgrid_volunteer.owner.traffic import Traffic
from memgrid_volunteer.owner.watching import Watcher
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.ruling import Ruling
from memgrid_volunteer.sandbox import WORKER_MODULE
from memgrid_volunteer.session import CoordinatorSession
from memgrid_volunteer.transfers import Transfers
from memgrid_volunteer.travelling import Travelling
from memgrid_volunteer.workbench import Workbench

Programs = Callable[[], tuple[str, ...]]
"""The programs that preferences call exclusive, as they are now."""
MakeProbes = Callable[[Path, Sequence[WatchedDevice], Programs], Sequence[Probe]]


def real_probes(folder: Path, devices: Sequence[WatchedDevice], programs: Programs) -> Sequence[Probe]:
    """All that make sense on this system."""
    # Brings D-Bus, X and NVML: seconds that `join` need not wait for.
    from memgrid_volunteer.owner.probes.here import probes_here
    from memgrid_volunteer.owner.probes.ours import own_pids

    return probes_here(folder=folder, devices=devices, own_pids=own_pids, programs=programs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: see the command line's help."""

    limits: Limits = field(default_factory=Limits)
    threads: int | None = None
    worker_module: str = WORKER_MODULE
    isolation: Isolation | None = None
    """None: the strongest that works."""
    backoff: Backoff = backoff_s
    page_port: int | None = None
    """Where to serve the page; 0 is the port of last time, None is nowhere."""
    clock: Clock = field(default_factory=SystemClock)
    probes: MakeProbes = real_probes
    """What looks at the machine for its owner."""

    @property
    def workers(self) -> Workers:
        return Workers(threads=self.threads, module=self.worker_module, isolation=self.isolation)


def build(
    home: Home, membership: Membership, machine: Machine, client: httpx.AsyncClient, options: Options, tell: Tell
) -> Agent:
    """An agent that is ready to run. Raises InvalidError when the preferences have errors and never were good."""
    clock, rng, news = options.clock, random.Random(), asyncio.Event()
    file = PreferencesFile(home.folder)
    file.current()
    desk, outbox = Desk(), Outbox(home.outbox)
    diary = Diary(home, machine.facts, clock, tell, names=[device.device_id for device in machine.devices])
    cache = BlobCache(home.cache, limit_bytes=options.limits.cache_bytes or _UNLIMITED)
    traffic = Traffic(home.folder, clock)
    budget = Budget(traffic=traffic, clock=clock)
    session = CoordinatorSession(
        membership.url, home=None, key=home.key(), host_id=membership.host_id, facts=machine.facts, clock=clock
    )
    transfers = Transfers(client, cache, lambda: session.token, rng, budget=budget, backoff=options.backoff)
    workbench = Workbench(
        benches=machine.benches,
        desk=desk,
        outbox=outbox,
        cache=cache,
        transfers=transfers,
        work=home.work,
        diary=diary,
        clock=clock,
        rng=rng,
        backoff=options.backoff,
        news=news,
    )
    travelling = Travelling(desk=desk, work=home.work, cache=cache, budget=budget, clock=clock, news=news)
    deliveries = Deliveries(outbox, travelling, transfers, diary, news, clock=clock, rng=rng, backoff=options.backoff)
    correspondence = Correspondence(
        session=session,
        workbench=workbench,
        deliveries=deliveries,
        travelling=travelling,
        desk=desk,
        outbox=outbox,
        cache=cache,
        diary=diary,
        clock=clock,
        rng=rng,
        news=news,
        limits=options.limits,
        backoff=options.backoff,
        budget=budget,
    )
    watched = [WatchedDevice(device_id=device.device_id, uuid=device.uuid) for device in machine.devices]
    probes = options.probes(home.folder, watched, lambda: file.current().when.exclusive_programs)
    watcher = Watcher((*probes, traffic), clock, Control(home.folder), watched)
    ruling = Ruling(watcher=watcher, file=file, devices=machine.devices, clock=clock, tell=diary.note)
    return Agent(
        ruling=ruling,
        correspondence=correspondence,
        workbench=workbench,
        deliveries=deliveries,
        travelling=travelling,
        desk=desk,
        outbox=outbox,
        cache=cache,
        budget=budget,
        diary=diary,
        clock=clock,
        news=news,
        limits=options.limits,
    )


_UNLIMITED = 1 << 62
