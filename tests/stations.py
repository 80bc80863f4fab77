"""A cluster whose machines are stations in the test's own process: all is real, but for the way between them."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memgrid_volunteer.cluster.station import Station
from memgrid_volunteer.cluster.words import PIECE_BYTES, Found, NodeGoneError, Terms

_MESSAGE_BYTES_MAX = PIECE_BYTES + (64 << 10)


@dataclass
class Stations:
    """Machines by name, each with a folder of its own; `strange` ones have another release of memgrid."""

    folder: Path
    hosts: list[str]
    strange: set[str] = field(default_factory=set)
    stations: dict[str, Wire] = field(default_factory=dict)
    """The latest on each machine."""
    wires: list[Wire] = field(default_factory=list)

    def __enter__(self) -> Stations:
        return self

    def __exit__(self, *_: object) -> None:
        """Stations end with the loop they run in; see `ended`."""

    async def ended(self) -> None:
        """All that was cut off has cleaned up."""
        for wire in self.wires:
            await wire.ended()

    def look(self) -> tuple[Found, ...]:
        return tuple(Found(node_id=f"id-of-{host}", host=host) for host in self.hosts)

    def begin(self, found: Found, terms: Terms) -> Wire:
        if found.host in self.strange:
            terms = replace(terms, version="0.0.1")
        wire = self.stations[found.host] = Wire(Station(_carried(terms), self.folder / found.host))
        self.wires.append(wire)
        return wire

    def end(self, call: Any) -> None:
        call.cut("its station was ended")

    def kill(self, host: str) -> None:
        """A power cut there, which the cluster notices."""
        self.hosts.remove(host)
        self.stations[host].cut("The actor died because its node has died.")


class Wire:
    """Calls a station as if it were far away: what goes and comes is pickled, and small enough for a message."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._pending: set[asyncio.Task[Any]] = set()
        self._ending: asyncio.Task[None] | None = None
        self._why = ""
        self.methods: list[str] = []

    async def __call__(self, method: str, *args: Any, limit_s: float | None = None) -> Any:
        self.methods.append(method)
        if self._why:
            raise NodeGoneError(self._why)
        task = asyncio.create_task(getattr(self._station, method)(*_carried(args)))
        self._pending.add(task)
        try:
            async with asyncio.timeout(limit_s):
                return _carried(await asyncio.shield(task))
        except asyncio.CancelledError:
            if self._why and task.cancelled():
                raise NodeGoneError(self._why) from None
            raise
        finally:
            self._pending.discard(task)

    def cut(self, why: str) -> None:
        """Nothing goes there or comes back any more, and the station ends."""
        if not self._why:
            self._why = why
            for task in self._pending:
                task.cancel()
            self._ending = asyncio.create_task(self._end(*self._pending))

    async def _end(self, *pending: asyncio.Task[Any]) -> None:
        await asyncio.gather(*pending, return_exceptions=True)
        await self._station.close()

    async def ended(self) -> None:
        if self._ending is not None:
            await self._ending


def _carried(what: Any) -> Any:
    """What comes out at the other end, which Ray reaches by pickling, too."""
    message = pickle.dumps(what)
    assert len(message) <= _MESSAGE_BYTES_MAX
    return pickle.loads(message)
