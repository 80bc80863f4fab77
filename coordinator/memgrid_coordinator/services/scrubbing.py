"""Read everything that is kept again, slowly, and find what the disk has lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from memgrid.clock import Clock
from memgrid.digest import Digest, parse_digest
from memgrid.errors import InvalidError, UnknownIdError
from memgrid.log import get_logger
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.services.healing import Healing, Loss
from memgrid_coordinator.store import row_digests
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
EVERY = timedelta(seconds=1)
_FIRST_AFTER_S = 300.0
_REST_S = 24 * 3600.0
_PIECE_BYTES = 4 << 20
_LISTED_AT_ONCE = 1000


@dataclass(slots=True, kw_only=True)
class Scrubbed:
    """What a pass has read and found so far."""

    blobs: int = 0
    size_bytes: int = 0
    losses: list[Loss] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    """Rows that are not what their own address says."""


@dataclass(slots=True)
class _Open:
    digest: Digest
    offset: int = 0
    state: Any = field(default_factory=hashlib.sha256)


class Scrubbing:
    """One pass after another over content and rows. Where a pass is, a small file in the data folder knows."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        healing: Healing,
        clock: Clock,
        bytes_per_s: int,
        mark: Path,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._healing = healing
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._mark = mark
        self._metrics = metrics
        self._after = _read_mark(mark)
        self._begins_s = clock.monotonic_s() + _FIRST_AFTER_S
        self._listed: deque[Digest] = deque()
        self._open: _Open | None = None
        self._pass = Scrubbed()

    async def scrub(self) -> int:
        """The sweep: read as much as one second may take; returns how many blobs were read to their end."""
        if not self._bytes_per_s or self._clock.monotonic_s() < self._begins_s:
            return 0
        before, budget_bytes = self._pass.blobs, self._bytes_per_s
        while budget_bytes > 0:
            read_bytes = await self._step(min(budget_bytes, _PIECE_BYTES))
            if read_bytes is None:
                read = self._pass.blobs - before
                await self._end()
                return read
            # Even an empty file costs a look.
            budget_bytes -= max(read_bytes, 4096)
        return self._pass.blobs - before

    async def run(self) -> Scrubbed:
        """A whole pass from the beginning, as fast as it goes."""
        self._after, self._open = None, None
        self._listed.clear()
        self._pass = Scrubbed()
        while await self._step(_PIECE_BYTES) is not None:
            pass
        self._pass.rows = await self._rows()
        return self._pass

    async def _step(self, count: int) -> int | None:
        """Read one piece; None when everything has been read."""
        if self._open is None and (digest := await self._next()) is not None:
            self._open = _Open(digest)
        if (current := self._open) is None:
            return None
        try:
            piece = await asyncio.to_thread(self._blobs.read_piece, current.digest, current.offset, count)
        except UnknownIdError:
            self._open = None  # collected meanwhile
            return 0
        except OSError as error:
            log.error("content can't be read", digest=current.digest, error=str(error))
            piece = b""
        await asyncio.to_thread(current.state.update, piece)
        current.offset += len(piece)
        if self._metrics is not None:
            self._metrics.blobs_scrubbed_bytes.inc(len(piece))
        if len(piece) < count:
            self._open = None
            await self._judge(current)
        return len(piece)

    async def _judge(self, read: _Open) -> None:
        self._pass.blobs += 1
        self._pass.size_bytes += read.offset
        self._after = read.digest
        if "sha256:" + read.state.hexdigest() == read.digest:
            return
        if self._metrics is not None:
            self._metrics.blobs_damaged.inc()
        await asyncio.to_thread(self._blobs.set_aside, read.digest)
        self._pass.losses.append(await self._healing.lost(read.digest))

    async def _next(self) -> Digest | None:
        if not self._listed:
            page = await asyncio.to_thread(self._blobs.kept_after, self._after, _LISTED_AT_ONCE)
            self._listed.extend(blob.digest for blob in page)
            await asyncio.to_thread(_write_mark, self._mark, self._after)
        return self._listed.popleft() if self._listed else None

    async def _rows(self) -> list[str]:
        """What of the database is not what its own address says."""
        found: list[str] = []
        for walk in row_digests.WALKS:
            after: Any = None
            while True:
                page = await self._page(walk, after)
                found += page.damaged
                if (after := page.next_key) is None:
                    break
        for row in found:
            log.error("row damaged", row=row)
        if self._metrics is not None:
            self._metrics.rows_damaged.set(len(found))
        return found

    async def _page(self, walk: row_digests.Walk, after: Any) -> row_digests.RowPage:
        return await self._store.read(lambda connection: walk(connection, after))

    async def _end(self) -> None:
        rows = await self._rows()
        log.info(
            "scrubbed",
            blobs=self._pass.blobs,
            bytes=self._pass.size_bytes,
            lost=len(self._pass.losses),
            rows=len(rows),
        )
        self._after, self._pass = None, Scrubbed()
        self._begins_s = self._clock.monotonic_s() + _REST_S
        await asyncio.to_thread(_write_mark, self._mark, None)


def _read_mark(path: Path) -> Digest | None:
    try:
        after = json.loads(path.read_text())["after"]
        return None if after is None else parse_digest(after)
    except (OSError, ValueError, TypeError, KeyError, InvalidError):
        return None  # then the pass begins anew


def _write_mark(path: Path, after: Digest | None) -> None:
    draft = path.with_suffix(".new")
    try:
        draft.write_text(json.dumps({"after": after}))
        draft.replace(path)
    except OSError as error:
        log.warning("the scrub's place was not kept", error=str(error))
