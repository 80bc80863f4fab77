"""A TCP proxy that is as slow and as far away as a home's line: bytes pass at a rate, and arrive after a delay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

BLOCK_BYTES = 16 << 10
QUEUED_BLOCKS_MAX = 16
"""What a modem holds before whoever sends has to wait."""


@dataclass(slots=True, kw_only=True)
class Lane:
    """One direction, shared by all connections: a block leaves when those before it have."""

    bytes_per_s: float
    delay_s: float
    passed_bytes: int = 0
    _free_s: float = 0.0

    def due_s(self, size_bytes: int, now_s: float) -> float:
        """When a block that is sent now is there.

        >>> lane = Lane(bytes_per_s=1000.0, delay_s=0.25)
        >>> lane.due_s(500, 0.0), lane.due_s(500, 0.0), lane.due_s(500, 9.0)
        (0.75, 1.25, 9.75)
        """
        self._free_s = max(now_s, self._free_s) + size_bytes / self.bytes_per_s
        self.passed_bytes += size_bytes
        return self._free_s + self.delay_s


@dataclass(slots=True, kw_only=True)
class SlowLine:
    """Both directions of one line; `listen` opens a way through it to a port of this machine."""

    up: Lane
    down: Lane
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def listen(self, port: int) -> AsyncIterator[int]:
        """The port at the near end."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            for lane, source, target in ((self.up, reader, far_writer), (self.down, far_reader, writer)):
                task = asyncio.create_task(_carry(lane, source, target))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _carry(lane: Lane, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Until either side ends."""
    clock = asyncio.get_running_loop().time
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_BLOCKS_MAX)

    async def deliver() -> None:
        while True:
            due_s, block = await waiting.get()
            await asyncio.sleep(max(0.0, due_s - clock()))
            if not block:
                target.close()
                return
            target.write(block)
            await target.drain()

    delivering = asyncio.create_task(deliver())
    try:
        block = b"a first block"
        while block:
            block = await source.read(BLOCK_BYTES)
            await waiting.put((lane.due_s(len(block), clock()), block))
        await delivering
    except ConnectionError:
        target.close()
    finally:
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
