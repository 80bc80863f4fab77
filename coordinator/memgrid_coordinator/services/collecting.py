"""Give the room back that content takes which nobody can ask for any more."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.log import get_logger
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.reachability import KeptBlob, Reachable, garbage_of
from memgrid_coordinator.store import reachable
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
_LISTED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectRule:
    """How long content stays that nothing names, and what failed documents made."""

    every: timedelta
    grace: timedelta
    keep_failed: timedelta


@dataclass(slots=True, kw_only=True)
class Collected:
    """One pass: what stays and what went, or what would go."""

    kept: int = 0
    kept_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0


class Collecting:
    """Reads which content rows name, lists what is kept, and lets the difference go. It may stop anywhere.

    What came or was asked about within the time of grace stays. As a sweep it removes only what it found unnamed in
    two passes in a row: a clock that has jumped can't make everything old at once.
    """

    def __init__(
        self, *, store: Store, blobs: BlobStore, clock: Clock, rule: CollectRule, metrics: Metrics | None = None
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._rule = rule
        self._metrics = metrics
        self._due_s = clock.monotonic_s() + rule.every.total_seconds()
        self._suspects: frozenset[int] = frozenset()

    async def collect(self) -> int:
        """The sweep: a pass when one is due; returns how many blobs went."""
        if self._clock.monotonic_s() < self._due_s:
            return 0
        self._due_s = self._clock.monotonic_s() + self._rule.every.total_seconds()
        done = await self.run(suspects=self._suspects)
        if self._metrics is not None:
            self._metrics.blobs_kept.set(done.kept)
            self._metrics.blobs_kept_bytes.set(done.kept_bytes)
            self._metrics.blobs_collected_bytes.inc(done.removed_bytes)
        return done.removed

    async def run(self, *, suspects: frozenset[int] | None = None, is_trial: bool = False) -> Collected:
        """One pass now; of `suspects` only, if given. A trial removes nothing."""
        now = self._clock.now()
        cutoff, failed_since = now - self._rule.grace, now - self._rule.keep_failed
        named, makers = await self._named(failed_since)
        done, unnamed = Collected(), set[int]()
        after: Digest | None = None
        while page := await asyncio.to_thread(self._blobs.kept_after, after, _LISTED_AT_ONCE):
            after = page[-1].digest
            garbage = garbage_of(page, named, cutoff)
            unnamed |= {_short(blob.digest) for blob in garbage}
            gone = [blob for blob in garbage if suspects is None or _short(blob.digest) in suspects]
            freed = gone if is_trial else await self._let_go(gone, makers, cutoff, failed_since)
            done.removed += len(freed)
            done.removed_bytes += sum(blob.size_bytes for blob in freed)
            done.kept += len(page) - len(freed)
            done.kept_bytes += sum(blob.size_bytes for blob in page) - sum(blob.size_bytes for blob in freed)
        self._suspects = frozenset(unnamed)
        if done.removed and not is_trial:
            log.info("content collected", blobs=done.removed, bytes=done.removed_bytes, kept=done.kept)
        return done

    async def _named(self, failed_since: datetime) -> tuple[Reachable, _Makers]:
        """Everything that rows name, and the units whose results nobody wants."""
        named, makers = Reachable(), _Makers()
        for walk in reachable.WALKS:
            after: Any = None
            while True:
                page = await self._page(walk, after, failed_since)
                await asyncio.to_thread(named.add, page.texts)
                makers.add(page.results)
                if (after := page.next_key) is None:
                    break
        return named, makers

    async def _page(self, walk: reachable.Walk, after: Any, failed_since: datetime) -> reachable.Page:
        return await self._store.read(lambda connection: walk(connection, after, failed_since))

    async def _let_go(
        self, garbage: Sequence[KeptBlob], makers: _Makers, cutoff: datetime, failed_since: datetime
    ) -> list[KeptBlob]:
        """First the results that rows tell of, then the bytes, then who may read them: each alone does no harm."""
        if not garbage:
            return []
        unit_ids = makers.of(garbage)
        wanted = await self._store.write(
            lambda connection: reachable.let_results_go(connection, unit_ids, failed_since)
        )
        freed = [blob for blob in garbage if blob.digest not in wanted and await self._remove(blob.digest, cutoff)]
        gone = [blob.digest for blob in freed if not await asyncio.to_thread(self._blobs.has, blob.digest)]
        for start in range(0, len(gone), reachable.ROWS):
            part = gone[start : start + reachable.ROWS]
            await self._store.write(partial(reachable.unlink_everywhere, digests=part))
        return freed

    async def _remove(self, digest: Digest, cutoff: datetime) -> bool:
        return await asyncio.to_thread(self._blobs.remove, digest, unless_renewed_since=cutoff) is not None


class _Makers:
    """Which units made which results, in sixteen bytes each."""

    def __init__(self) -> None:
        self._unit_ids = array("q")
        self._results = array("Q")

    def add(self, results: Sequence[tuple[int, Digest]]) -> None:
        self._unit_ids.extend(unit_id for unit_id, _ in results)
        self._results.extend(_short(digest) for _, digest in results)

    def of(self, garbage: Sequence[KeptBlob]) -> list[int]:
        wanted = {_short(blob.digest) for blob in garbage}
        return [unit_id for unit_id, result in zip(self._unit_ids, self._results, strict=True) if result in wanted]


def _short(digest: Digest) -> int:
    return int(digest[7:23], 16)
