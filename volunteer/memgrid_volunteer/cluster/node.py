"""One machine of the cluster as its supervisor sees it: what goes there, what comes back, and how it stands."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.errors import InvalidError, MemgridError
from memgrid.log import get_logger
from memgrid.units import BlobRef, Reason, ReasonCode
from memgrid_volunteer.cluster import arriving, pieces
from memgrid_volunteer.cluster.far_bench import FarBench
from memgrid_volunteer.cluster.names import NodeName, far_id
from memgrid_volunteer.cluster.words import LEFT, PACKED, Call, Ended, Greeting, News, NodeGoneError, TaskName, Wanted
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.kept import tag_of
from memgrid_volunteer.kinds.job import DeviceId, Outcome
from memgrid_volunteer.owner.decision import Action, Decision
from memgrid_volunteer.owner.signals import DeviceSignals
from memgrid_volunteer.packing import pack

CALL_LIMIT_S = 60.0
"""For whatever moves no more than one piece; a machine that takes longer is as good as gone."""
STOP_LIMIT_S = 5.0
STALE_S = 10.0
"""Devices of a machine that was not heard of for so long get nothing new."""
_PAUSE_S = 0.1
"""Between two pieces of news: a worker may tell of every step."""

log = get_logger(__name__)


class Node:
    """Its devices are `benches`; `listen` and `tell` have to run for them to be of any use."""

    def __init__(
        self, name: NodeName, call: Call, greeting: Greeting, wanted: Wanted, clock: Clock, losses: Counter[TaskName]
    ) -> None:
        """`wanted` is what its station began with."""
        self.name = name
        self.facts = greeting.facts
        self._call = call
        self._clock = clock
        self._news = News()
        self._heard_at_s = clock.monotonic_s()
        self._sending = asyncio.Lock()
        self.benches = tuple(
            FarBench(replace(each, device_id=far_id(name, each.device_id)), each.device_id, self, clock, losses)
            for each in greeting.devices
        )
        self._wanted = wanted
        self._has_word = asyncio.Event()
        self._has_gone = False

    def end(self) -> None:
        """It has gone: it gets no unit, and no word goes there any more."""
        self._has_gone = True
        for bench in self.benches:
            bench.has_left = True

    async def listen(self) -> None:
        """Loop: how it stands, until it has gone. Raises NodeGoneError, or what went wrong there."""
        while True:
            await self.look()
            for bench in self.benches:
                if bench.task is not None and (progress := self._news.progress.get(bench.task)) is not None:
                    bench.goes_on(bench.task, progress)
            await asyncio.sleep(_PAUSE_S)

    async def look(self) -> None:
        """Hear how it stands, as soon as that is news. Raises as `listen` does."""
        self._news = await self._call("news", self._news.number, limit_s=CALL_LIMIT_S)
        self._heard_at_s = self._clock.monotonic_s()

    def hear(self, wanted: Wanted) -> None:
        """What its owner wants from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._has_word.set()

    async def tell(self) -> None:
        """Loop: pass on what its owner wants. Raises NodeGoneError."""
        while True:
            await self._has_word.wait()
            self._has_word.clear()
            await self._call("hear", self._wanted, limit_s=CALL_LIMIT_S)

    @property
    def decisions(self) -> dict[DeviceId, Decision]:
        """What each of its devices may do, by their names here."""
        silent_s = self._clock.monotonic_s() - self._heard_at_s
        if silent_s > STALE_S:
            text = f"{self.name} has not answered for {silent_s:.0f} s"
            return {bench.device_id: _held_back(text) for bench in self.benches}
        unknown = _held_back(f"{self.name} has not answered yet")
        return {bench.device_id: self._news.decisions.get(bench.there, unknown) for bench in self.benches}

    @property
    def signals(self) -> dict[DeviceId, DeviceSignals]:
        """The readings of its devices, by their names here."""
        seen: Mapping[DeviceId, DeviceSignals] = self._news.signals
        return {bench.device_id: seen[bench.there] for bench in self.benches if bench.there in seen}

    async def compute(self, there: DeviceId, prepared: Prepared, is_wanted: Callable[[], bool]) -> Outcome:
        name = prepared.job.unit_dir.name
        async with self._sending:  # two devices may want the same model, which is to go there once
            await self._send_inputs(prepared)
        if not is_wanted():
            return Outcome(failure=Reason(code=ReasonCode.OWNER_PAUSED, text="it was stopped on its way"))
        ended: Ended = await self._call("run", name, there)
        self._news = replace(self._news, decisions={**self._news.decisions, there: ended.decision})
        try:
            if ended.outcome.facts is not None:
                await arriving.outputs(prepared, ended.files, self._fetch)
            elif ended.files and is_wanted():
                await arriving.states(prepared, ended.files, self._fetch)
        finally:
            with contextlib.suppress(NodeGoneError):
                await self._call("forget", name, limit_s=CALL_LIMIT_S)
        return ended.outcome

    async def stop(self, there: DeviceId) -> None:
        if self._has_gone:
            return
        with contextlib.suppress(MemgridError):
            await self._call("stop", there, limit_s=STOP_LIMIT_S)

    async def _send_inputs(self, prepared: Prepared) -> None:
        """All that the unit needs and its machine has not, and what is done of the unit already."""
        packing = prepared.folders.work / PACKED / prepared.job.unit_dir.name
        try:
            states = await asyncio.to_thread(_packed, prepared, packing)
            paths = _paths_of(prepared) | ({states.digest: packing} if states is not None else {})
            lacking: tuple[BlobRef, ...] = await self._call(
                "expect", prepared.offer, prepared.model, states, tag_of(prepared.job.unit_dir.name)
            )
            for blob in lacking:
                await self._send(blob, paths[blob.digest])
        finally:
            packing.unlink(missing_ok=True)

    async def _send(self, blob: BlobRef, path: Path) -> None:
        for offset in pieces.offsets(blob.size_bytes):
            piece = await asyncio.to_thread(pieces.read_piece, path, offset)
            # Whoever sends a large file there checks it last: that takes a while.
            await self._call(
                "take", blob, offset, piece, limit_s=CALL_LIMIT_S + blob.size_bytes / _HASHED_BYTES_PER_S
            )
        log.info("sent to a node", node=self.name, name=blob.name, size_bytes=blob.size_bytes)

    async def _fetch(self, prepared: Prepared, blob: BlobRef, target: Path) -> None:
        """One file that a unit has left there. Raises DigestMismatchError, NodeGoneError, OSError."""
        for offset in pieces.offsets(blob.size_bytes):
            piece = await self._call("piece", prepared.job.unit_dir.name, blob.name, offset, limit_s=CALL_LIMIT_S)
            await asyncio.to_thread(pieces.write_piece, target, blob, offset, piece)
        await asyncio.to_thread(pieces.check, target, blob)


_HASHED_BYTES_PER_S = 100e6


def _packed(prepared: Prepared, target: Path) -> BlobRef | None:
    """What is done of a unit here as one file; None when that is nothing, or the disk does not take it."""
    out, aside = prepared.job.out_dir, target.with_name(f"{target.name}.{LEFT}")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        out.rename(aside)  # out of the sight of workers
        try:
            packed = pack(aside, prepared.offer.spec, target)
        finally:
            aside.rename(out)
    except (InvalidError, OSError):
        return None
    return BlobRef(name=PACKED, digest=packed.digest, size_bytes=packed.size_bytes)


def _paths_of(prepared: Prepared) -> dict[Digest, Path]:
    """Where the unit's model and inputs lie here."""
    model = {file.digest: prepared.job.model_dir / file.name for file in prepared.model.files}
    return model | {blob.digest: prepared.job.unit_dir / blob.name for blob in prepared.offer.inputs}


def _held_back(text: str) -> Decision:
    reason = Reason(code=ReasonCode.NOT_SEEN, text=text)
    return Decision(action=Action.PAUSE_KEEP, duty=0.0, reason=reason)
