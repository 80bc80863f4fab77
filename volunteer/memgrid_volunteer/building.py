"""Puts a volunteer's parts together; decides nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from memgrid.channel import backoff_s
from memgrid.clock import Clock, SystemClock
from memgrid_volunteer.agent import Agent
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.cluster.cluster import Cluster
from memgrid_volunteer.cluster.words import Nodes
from memgrid_volunteer.correspondence import Correspondence
from memgrid_volunteer.deliveries import Deliveries
from memgrid_volunteer.diary import Diary, Tell
from memgrid_volunteer.grid_diary import GridDiary
from memgrid_volunteer.home import Home
from memgrid_volunteer.isolation import Isolation
from memgrid_volunteer.limits import Limits
from memgrid_volunteer.line import Line
from memgrid_volunteer.machine import Machine, Workers
from memgrid_volunteer.member import Member
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.probes.probe import Probe, WatchedDevice
from memgrid_volunteer.owner.traffic import Traffic
from memgrid_volunteer.owner.watching import Watcher
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.preparing import Preparing
from memgrid_volunteer.ruling import Ruling
from memgrid_volunteer.sandbox import WORKER_MODULE
from memgrid_volunteer.session import CoordinatorSession
from memgrid_volunteer.sharing import Sharing
from memgrid_volunteer.transfers import Transfers
from memgrid_volunteer.travelling import Travelling
from memgrid_volunteer.workbench import Workbench

Programs = Callable[[], tuple[str, ...]]
"""The programs that preferences call exclusive, as they are now."""
MakeNodes = Callable[[], AbstractContextManager[Nodes]]
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
    nodes: MakeNodes | None = None
    """The other machines of the owner's cluster; None where there are none."""
    page_port: int | None = None
    """Where to serve the page; 0 is the port of last time, None is nowhere."""
    clock: Clock = field(default_factory=SystemClock)
    probes: MakeProbes = real_probes
    """What looks at the machine for its owner."""

    @property
    def workers(self) -> Workers:
        return Workers(threads=self.threads, module=self.worker_module, isolation=self.isolation)


def build(home: Home, machine: Machine, options: Options, tell: Tell, nodes: Nodes | None = None) -> Agent:
    """An agent that is ready to run; `nodes` are other machines that work for it.

    Raises InvalidError when the preferences have errors and never were good.
    """
    clock = options.clock
    file = PreferencesFile(home.folder)
    file.current()
    diary = Diary(home, machine.facts, clock, tell, names=[device.device_id for device in machine.devices])
    cache = BlobCache(home.cache, limit_bytes=options.limits.cache_bytes or _UNLIMITED)
    traffic = Traffic(home.folder, clock)
    shared = _Shared(
        machine=machine, options=options, cache=cache, work=home.work, budget=Budget(traffic=traffic, clock=clock)
    )
    members = _members(home, diary)
    sharing = Sharing(home.folder, members, clock)
    workbench = Workbench(
        benches=machine.benches, members=members, sharing=sharing, cache=cache, work=home.work, clock=clock
    )
    watched = [WatchedDevice(device_id=device.device_id, uuid=device.uuid) for device in machine.devices]
    probes = options.probes(home.folder, watched, lambda: file.current().when.exclusive_programs)
    watcher = Watcher((*probes, traffic), clock, Control(home.folder), watched)
    return Agent(
        ruling=Ruling(watcher=watcher, file=file, devices=machine.devices, clock=clock, tell=tell),
        lines=[_line(member, sharing, workbench, shared) for member in members],
        sharing=sharing,
        workbench=workbench,
        cache=cache,
        budget=shared.budget,
        diary=diary,
        clock=clock,
        limits=options.limits,
        cluster=None if nodes is None else _cluster(nodes, machine, options),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What all grids have in common."""

    machine: Machine
    options: Options
    cache: BlobCache
    work: Path
    budget: Budget


def _members(home: Home, diary: Diary) -> list[Member]:
    places = home.joined()
    return [
        Member(
            place,
            GridDiary(diary, place.membership(), is_one_of_many=len(places) > 1),
            # Of the first grid as it was before there were others.
            tag="" if place.folder == home.folder else f"{place.membership().grid_id}.",
        )
        for place in places
    ]


def _line(member: Member, sharing: Sharing, workbench: Workbench, shared: _Shared) -> Line:
    options, cache, rng = shared.options, shared.cache, random.Random()
    clock, backoff = options.clock, options.backoff
    session = CoordinatorSession(
        member.membership.url,
        home=None,
        key=member.key,
        host_id=member.membership.host_id,
        facts=shared.machine.facts,
        clock=clock,
    )
    transfers = Transfers(
        None, cache, lambda: session.token, rng, budget=shared.budget, backoff=backoff, tag=member.tag
    )
    travelling = Travelling(
        desk=member.desk,
        work=shared.work,
        cache=cache,
        budget=shared.budget,
        clock=clock,
        news=member.news,
        tag=member.tag,
    )
    deliveries = Deliveries(
        member.outbox, travelling, transfers, member.diary, member.news, clock=clock, rng=rng, backoff=backoff
    )
    preparing = Preparing(
        member=member,
        ready=workbench.ready,
        cache=cache,
        transfers=transfers,
        work=shared.work,
        clock=clock,
        rng=rng,
        backoff=backoff,
        give_back=workbench.give_back,
    )
    correspondence = Correspondence(
        member=member,
        sharing=sharing,
        session=session,
        workbench=workbench,
        deliveries=deliveries,
        travelling=travelling,
        cache=cache,
        clock=clock,
        rng=rng,
        limits=options.limits,
        backoff=backoff,
        budget=shared.budget,
    )
    return Line(
        member=member,
        transfers=transfers,
        preparing=preparing,
        deliveries=deliveries,
        travelling=travelling,
        correspondence=correspondence,
        rng=rng,
        backoff=backoff,
        is_one_of_many=sharing.is_shared,
    )


def _cluster(nodes: Nodes, machine: Machine, options: Options) -> Cluster:
    cache_bytes = options.limits.cache_bytes
    return Cluster(nodes, own=machine.facts, workers=options.workers, cache_bytes=cache_bytes, clock=options.clock)


_UNLIMITED = 1 << 62
