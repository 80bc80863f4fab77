"""What a machine computes with: its devices, each with a worker of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from memgrid.clock import Clock
from memgrid.units import HostFacts
from memgrid_volunteer.bench import Bench
from memgrid_volunteer.devices import NamedDevice, remembered
from memgrid_volunteer.home import Home
from memgrid_volunteer.host import default_threads, host_facts
from memgrid_volunteer.isolation import Folders, Isolation
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.own_bench import OwnBench
from memgrid_volunteer.owner.preferences import CPU
from memgrid_volunteer.sandbox import WORKER_MODULE, Sandbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """How workers are run: see the command line's help."""

    threads: int | None = None
    module: str = WORKER_MODULE
    isolation: Isolation | None = None
    """None: the strongest that works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a volunteer works with: devices with their benches, in the same order, and what the grid is told."""

    devices: Sequence[NamedDevice]
    benches: Sequence[Bench]
    facts: HostFacts


async def machine_here(home: Home, workers: Workers, clock: Clock, stack: contextlib.AsyncExitStack) -> Machine:
    """Every device with a worker of its own; the first, and best, goes on with the worker that found them all."""
    sandbox = await stack.enter_async_context(worker(home, workers))
    hello = await sandbox.start()
    isolation = await sandbox.isolation()
    devices = remembered(hello.devices, home.folder)
    sandbox.bind(devices[0].torch_id)
    benches = [OwnBench(devices[0], sandbox, clock)]
    gpus = sum(device.facts.kind != CPU for device in devices)
    for device in devices[1:]:
        # Workers of GPUs share the processor.
        shared = 1 if device.facts.kind == CPU else gpus
        each = worker(home, workers, isolation=isolation, device_id=device.torch_id, shared=shared)
        benches.append(OwnBench(device, await stack.enter_async_context(each), clock))
    facts = host_facts(tuple(device.facts for device in devices), isolation)
    return Machine(devices=devices, benches=benches, facts=facts)


@contextlib.asynccontextmanager
async def worker(
    home: Home,
    workers: Workers,
    *,
    isolation: Isolation | None = None,
    device_id: DeviceId | None = None,
    shared: int = 1,
) -> AsyncIterator[Sandbox]:
    """One worker, ended with the context; `shared` of them have its threads together."""
    sandbox = Sandbox(
        Folders(cache=home.cache, work=home.work),
        threads=max(1, (workers.threads or default_threads()) // shared),
        module=workers.module,
        isolation=isolation or workers.isolation,
        device_id=device_id,
    )
    try:
        yield sandbox
    finally:
        await sandbox.kill()
