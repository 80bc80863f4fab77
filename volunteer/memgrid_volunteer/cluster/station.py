"""What runs on a node of the donor's cluster: its own probes, the owner's policy, and a walled-in worker a device.

It knows nothing of Ray and nothing of the grid. What the owner says comes from the supervisor, and is kept in files
as if it had been said here; what follows is decided and done here: giving a device back waits for no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import platformdirs

from memgrid.clock import SystemClock
from memgrid.errors import InternalError, InvalidError, UnavailableError
from memgrid.log import get_logger
from memgrid.units import BlobRef, LeaseOffer, ModelFiles, Reason, ReasonCode
from memgrid_volunteer.bench import FAILURES, Bench
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.cluster import leaving, pieces
from memgrid_volunteer.cluster.facts import platform_here
from memgrid_volunteer.cluster.standing import Standing
from memgrid_volunteer.cluster.words import Ended, Greeting, News, TaskName, Terms, Wanted
from memgrid_volunteer.home import Home
from memgrid_volunteer.inputs import Prepared, prepare
from memgrid_volunteer.kept import arrive, forget_old, gather
from memgrid_volunteer.kinds.job import DeviceId, Outcome
from memgrid_volunteer.machine import machine_here
from memgrid_volunteer.worth import Room

FOLDER_VARIABLE = "MEMGRID_NODE_FOLDER"
"""Where a node keeps models, inputs and half-done units, when not in its user's cache folder."""

log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class _Task:
    """One lease here, from its announcement until nobody asks for its files any more."""

    offer: LeaseOffer
    model: ModelFiles
    states: BlobRef | None
    """What was done of it elsewhere."""
    tag: str
    pins: contextlib.ExitStack
    prepared: Prepared | None = None
    files: leaving.Files | None = None
    may_go_on: bool = True
    """Whether what is committed of it is of any use."""


class Station:
    """One machine's part in a cluster that is one host; every method is called from afar, bytes in, bytes out."""

    def __init__(self, terms: Terms, folder: Path | None = None) -> None:
        self._terms = terms
        self._home = Home(folder or folder_here())
        self._clock = SystemClock()
        self._stack = contextlib.AsyncExitStack()
        self._tasks: dict[TaskName, _Task] = {}
        self._benches: dict[DeviceId, Bench] = {}
        self._running: dict[DeviceId, TaskName] = {}

    async def open(self) -> Greeting:
        """Begin; raises InvalidError when this machine does not fit, InternalError when no worker starts."""
        check_fit(self._terms)
        home, clock = self._home, self._clock
        home.make()
        self._stack.enter_context(_locked(home))
        gather(home.work, clock.now())
        self._cache = BlobCache(home.cache, limit_bytes=self._terms.cache_bytes or _UNLIMITED)
        # Ray sets OMP_NUM_THREADS to 1 for whoever asks for no processor of it; that says nothing about the owner.
        workers = replace(self._terms.workers, threads=self._terms.workers.threads or os.cpu_count())
        machine = await machine_here(home, workers, clock, self._stack)
        self._benches = {bench.device_id: bench for bench in machine.benches}
        self._standing = Standing(home, machine, self._cache, self._terms.cache_bytes, clock)
        self._standing.hear(self._terms.wanted)
        await self._standing.begin(self._stack)
        return Greeting(facts=machine.facts, devices=tuple(machine.devices))

    async def close(self) -> None:
        """End all workers; committed states stay, for the next start."""
        for name in list(self._tasks):
            await self.forget(name)
        await self._stack.aclose()

    async def hear(self, wanted: Wanted) -> None:
        """What the owner says from now on."""
        self._standing.hear(wanted)

    async def news(self, seen: int) -> News:
        """How things stand, as soon as it is not what `seen` says, and after a second in any case."""
        return await self._standing.news(seen)

    async def expect(
        self, offer: LeaseOffer, model: ModelFiles, states: BlobRef | None, tag: str
    ) -> tuple[BlobRef, ...]:
        """What has to be sent before a unit can run here; until it is forgotten, it stays. `tag` keeps grids apart.

        Raises InvalidError when the model is without files.
        """
        if not model.files:
            raise InvalidError(f"lease {offer.lease_id}: nobody says which files model {model.digest} has")
        name = tag + offer.lease_id
        await self.forget(name)
        blobs = (*model.files, *offer.inputs, *((states,) if states is not None else ()))
        with contextlib.ExitStack() as pins:
            pins.enter_context(self._cache.pinned(blob.digest for blob in blobs))
            lacking = await asyncio.to_thread(self._lacking, blobs)
            self._tasks[name] = _Task(offer=offer, model=model, states=states, tag=tag, pins=pins.pop_all())
        return lacking

    async def take(self, blob: BlobRef, offset: int, piece: bytes) -> None:
        """One piece of what was lacking, in order. Raises TooLargeError, InvalidError or DigestMismatchError."""
        await asyncio.to_thread(self._take, blob, offset, piece)

    async def run(self, name: TaskName, device_id: DeviceId) -> Ended:
        """One expected unit on one device, to its end; raises a MemgridError when it can't be prepared."""
        task, bench = self._task(name), self._bench(device_id)
        if device_id in self._running:
            raise InvalidError(f"{device_id}: runs {self._running[device_id]}")
        if task.states is not None:
            await asyncio.to_thread(self._go_on_from, task.states, task)
        task.prepared = await prepare(
            task.offer,
            task.model,
            transfers=_OnlyWhatIsHere(self._cache),
            cache=self._cache,
            work=self._home.work,
            tag=task.tag,
        )
        if not await bench.start():
            outcome = Outcome(failure=Reason(code=ReasonCode.OWNER_PAUSED, text="its device did not begin"))
            return Ended(outcome=outcome, decision=self._standing.decision(device_id))
        outcome = await self._run(name, task.prepared, bench)
        task.files = await asyncio.to_thread(leaving.files_of, task.prepared, outcome)
        task.may_go_on = leaving.may_go_on(outcome)
        return Ended(outcome=outcome, files=task.files.blobs, decision=self._standing.decision(device_id))

    async def piece(self, name: TaskName, file: str, offset: int) -> bytes:
        """A piece of a file that an ended unit has left. Raises InvalidError when there is no such file."""
        files = self._task(name).files
        path = None if files is None else files.paths.get(file)
        if path is None:
            raise InvalidError(f"{name}: has left no {file!r}")
        return await asyncio.to_thread(pieces.read_piece, path, offset)

    async def forget(self, name: TaskName) -> None:
        """Nobody asks for it any more; what it committed is kept a while, as after a restart."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.pins.close()
            try:
                await asyncio.to_thread(self._clear, task)
            except OSError as error:
                log.warning("unit not put away", task=name, error=str(error))

    async def stop(self, device_id: DeviceId) -> None:
        """End the unit that runs on a device."""
        await self._bench(device_id).stop()

    async def _run(self, name: TaskName, prepared: Prepared, bench: Bench) -> Outcome:
        self._running[bench.device_id] = name
        try:
            outcome = await bench.run(prepared, lambda progress: self._standing.goes_on(name, progress))
        finally:
            del self._running[bench.device_id]
            self._standing.ended(name)
        if outcome.facts is not None:
            bench.succeeded()
        elif outcome.failure is not None and outcome.failure.code in FAILURES:
            bench.failed(outcome.failure)
        return outcome

    def _lacking(self, blobs: tuple[BlobRef, ...]) -> tuple[BlobRef, ...]:
        cache = self._cache
        return tuple(
            blob
            for blob in dict.fromkeys(blobs)
            if not (cache.has(blob.digest, blob.size_bytes) and cache.is_sound(blob.digest))
        )

    def _take(self, blob: BlobRef, offset: int, piece: bytes) -> None:
        partial = self._cache.partial_path(blob.digest)
        try:
            if offset == 0:
                partial.unlink(missing_ok=True)
                self._cache.make_room(blob.size_bytes)
            if pieces.write_piece(partial, blob, offset, piece):
                self._cache.adopt(partial, blob.digest)
        except OSError as error:
            raise UnavailableError(f"its disk: {error.strerror}") from None

    def _go_on_from(self, states: BlobRef, task: _Task) -> None:
        try:
            arrive(self._cache.path_of(states.digest), task.offer.spec, self._home.work, task.tag)
        except (InvalidError, OSError) as error:
            # It is computed from the start then.
            log.warning("half-done unit not taken", lease_id=task.offer.lease_id, error=str(error))

    def _clear(self, task: _Task) -> None:
        if task.files is not None and task.prepared is not None:
            task.files.put_back(task.prepared.job.out_dir)
        if task.prepared is not None and task.may_go_on:
            task.prepared.keep()
            forget_old(self._home.work, self._clock.now())
        elif task.prepared is not None:
            task.prepared.clear()

    def _task(self, name: TaskName) -> _Task:
        if name not in self._tasks:
            raise InvalidError(f"{name}: is not expected here")
        return self._tasks[name]

    def _bench(self, device_id: DeviceId) -> Bench:
        if device_id not in self._benches:
            raise InvalidError(f"{device_id}: no such device here")
        return self._benches[device_id]


class _OnlyWhatIsHere:
    """Fetches nothing: all that a unit needs was sent before."""

    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache

    @property
    def room(self) -> Room:
        """None: what was done of a unit elsewhere has come, too, if there is any."""
        return Room(is_spared=True)

    async def fetch(self, blob: BlobRef) -> Path:
        if not self._cache.has(blob.digest, blob.size_bytes):
            raise UnavailableError(f"{blob.name} ({blob.digest}) was not sent")
        return self._cache.path_of(blob.digest)


_UNLIMITED = 1 << 62


def check_fit(terms: Terms) -> None:
    """Raises InvalidError, which says what is another here than at the supervisor."""
    for what, here, there in (
        ("memgrid", version("memgrid"), terms.version),
        ("system", platform_here(), terms.platform),
    ):
        if here != there:
            raise InvalidError(f"has {what} {here}, this volunteer {there}")


def folder_here() -> Path:
    """The node's own folder; homes are often shared by all nodes, so it has the machine's name in it."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("memgrid") / "nodes" / platform.node()


@contextlib.contextmanager
def _locked(home: Home) -> Iterator[None]:
    try:
        with home.lock():
            yield
    except InvalidError:
        raise InternalError(
            f"its folder {home.folder} is in use, by another node of the same machine perhaps"
        ) from None
