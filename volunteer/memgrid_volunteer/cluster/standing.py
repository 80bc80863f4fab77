"""How a node stands: what the owner's policy says of each device there, obeyed at once, then told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from memgrid.clock import Clock
from memgrid.log import get_logger
from memgrid_volunteer.bench import Bench
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.cluster.words import News, TaskName, Wanted
from memgrid_volunteer.home import Home
from memgrid_volunteer.kinds.job import DeviceId, Progress
from memgrid_volunteer.machine import Machine
from memgrid_volunteer.owner.control import Control
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.preferences import Preferences
from memgrid_volunteer.owner.preferences_file import PreferencesFile
from memgrid_volunteer.owner.probes.here import probes_here
from memgrid_volunteer.owner.probes.ours import own_pids
from memgrid_volunteer.owner.probes.probe import WatchedDevice
from memgrid_volunteer.owner.signals import DeviceSignals
from memgrid_volunteer.owner.watching import Watcher
from memgrid_volunteer.ruling import OWNER_CHECK_S, Ruling

NEWS_EVERY_S = 1.0
"""How long a supervisor that listens waits for readings alone."""

log = get_logger(__name__)


class Standing:
    """Looks, decides and obeys as a supervisor does for its own machine."""

    def __init__(self, home: Home, machine: Machine, cache: BlobCache, cache_bytes: int | None, clock: Clock) -> None:
        watched = [WatchedDevice(device_id=device.device_id, uuid=device.uuid) for device in machine.devices]
        self._benches: Mapping[DeviceId, Bench] = {bench.device_id: bench for bench in machine.benches}
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._control = Control(home.folder)
        self._file = PreferencesFile(home.folder)
        probes = probes_here(
            folder=home.folder,
            devices=watched,
            own_pids=own_pids,
            programs=lambda: self._file.current().when.exclusive_programs,
        )
        self._ruling = Ruling(
            watcher=Watcher(probes, clock, self._control, watched),
            file=self._file,
            devices=machine.devices,
            clock=clock,
            tell=lambda line: log.warning("preferences", problem=line),
        )
        self._decisions: dict[DeviceId, Decision] = {}
        self._signals: Mapping[DeviceId, DeviceSignals] = {}
        self._progress: dict[TaskName, Progress] = {}
        self._number = 0
        self._changed = asyncio.Event()
        self._loops: tuple[asyncio.Task[None], ...] = ()

    def hear(self, wanted: Wanted) -> None:
        """What the owner says; it is kept as if it had been said here. Raises InvalidError for odd preferences."""
        self._file.replace(wanted.preferences)
        self._control.hold(wanted.pauses)

    async def begin(self, stack: contextlib.AsyncExitStack) -> None:
        """Look once, then go on looking until `stack` is closed."""
        await asyncio.to_thread(self._ruling.watcher.look)
        await self._look()
        self._loops = (asyncio.create_task(self._ruling.watcher.run()), asyncio.create_task(self._keep_looking()))
        stack.push_async_callback(self._end)

    async def news(self, seen: int) -> News:
        """How it stands, as soon as that is not what `seen` says; raises what ended the looking."""
        if self._number == seen:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NEWS_EVERY_S):
                    await self._changed.wait()
        self._changed.clear()
        for loop in self._loops:
            if loop.done():
                loop.result()
        return News(
            number=self._number,
            decisions=dict(self._decisions),
            signals=dict(self._signals),
            progress=dict(self._progress),
        )

    def decision(self, device_id: DeviceId) -> Decision:
        """What holds for a device."""
        return self._benches[device_id].decision

    def goes_on(self, task: TaskName, progress: Progress) -> None:
        """A unit tells how far it is."""
        self._progress[task] = progress
        self._tell()

    def ended(self, task: TaskName) -> None:
        """A unit does not run any more."""
        self._progress.pop(task, None)

    async def _keep_looking(self) -> None:
        try:
            while True:
                await asyncio.sleep(OWNER_CHECK_S)
                await self._look()
        finally:
            # Nobody looks after this machine's owner any more.
            await asyncio.gather(*(bench.stop() for bench in self._benches.values()))

    async def _look(self) -> None:
        ruled = self._ruling.look()
        decisions = {name: bench.ruled(ruled.decisions[name]) for name, bench in self._benches.items()}
        changed = [bench for name, bench in self._benches.items() if bench.decision != decisions[name]]
        await asyncio.gather(*(bench.obey(decisions[bench.device_id]) for bench in changed))
        await self._allow(ruled.preferences)
        self._signals = ruled.signals.devices
        if decisions != self._decisions:
            self._decisions = decisions
            self._tell()

    async def _allow(self, preferences: Preferences) -> None:
        for name, bench in self._benches.items():
            most_gb = preferences.device(name).memory_gb
            await bench.allow(None if most_gb is None else int(float(most_gb) * 1e9))
        limit_bytes = self._cache_bytes or int(float(preferences.disk.cache_gb) * 1e9)
        self._cache.allow(limit_bytes=limit_bytes, reserve_bytes=int(float(preferences.disk.free_min_gb) * 1e9))

    def _tell(self) -> None:
        self._number += 1
        self._changed.set()

    async def _end(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
