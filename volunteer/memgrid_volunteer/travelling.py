"""Half-done units between the hosts of one account: offered when a lease went back, fetched when one comes.

Nothing waits for it. A device is free, and the coordinator has its lease back, before anything is packed; and a unit
whose checkpoint is late, or no good, is computed from its beginning.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from memgrid.clock import Clock
from memgrid.errors import InvalidError, MemgridError
from memgrid.log import get_logger
from memgrid.units import CHECKPOINT_FILE, BlobRef, CheckpointRef, LeaseId, LeaseOffer, Release, UploadOrder
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.desk import Desk, Left
from memgrid_volunteer.kept import arrive, place_of, share_kept
from memgrid_volunteer.kinds.committed import read_committed
from memgrid_volunteer.outbox import safe_name
from memgrid_volunteer.packing import Packed, pack, packed_bytes
from memgrid_volunteer.transfers import Fetches
from memgrid_volunteer.worth import is_worth_fetching, is_worth_sending, saved_s

LOOK_EVERY_S = 0.5
ASIDE_WITHIN_S = 60.0
"""After a lease went back: by then its folder lies aside, or nothing of its unit was committed."""
PACKED_MAX = 8
"""Waiting to be sent at a time; a machine that gives back more sends some of it."""
FETCH_LEAST_S = 10.0
"""How long a checkpoint is waited for at least, however short its unit is said to be."""
_FOLDER = "leaving"
_ROUNDING = 1e-6
"""Shares travel in single precision."""

log = get_logger(__name__)


class Travelling:
    """What this machine has to leave behind; `news` is set when the coordinator should hear of it."""

    def __init__(
        self,
        *,
        desk: Desk,
        work: Path,
        cache: BlobCache,
        budget: Budget,
        clock: Clock,
        news: asyncio.Event,
        tag: str = "",
    ) -> None:
        """`tag`: what the grid's names begin with in `work`."""
        self._desk = desk
        self._work = work
        self._tag = tag
        self._cache = cache
        self._budget = budget
        self._clock = clock
        self._news = news
        self._packed: dict[LeaseId, Packed] = {}
        self._seen_s: dict[LeaseId, float] = {}

    async def run(self) -> None:
        """Loop: offer what is done of leases that went back."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self, limit_s: float | None = None) -> None:
        """Pack what lies aside by now and is worth its way; with a limit, what can be sent within it."""
        for left in self._desk.left():
            if share_kept(left.offer.unit_key, self._work, self._tag) > 0:
                checkpoint = await asyncio.to_thread(self._pack, left, limit_s)
                self._offer(left, checkpoint)
            elif self._has_waited(left):
                self._offer(left, None)

    def answered(self, released: Sequence[Release], orders: Sequence[UploadOrder]) -> None:
        """The coordinator has been told of these; what it did not order is let go."""
        ordered = {order.lease_id for order in orders if self.find(order) is not None}
        for release in released:
            if release.checkpoint is not None and release.lease_id not in ordered:
                self.end(release.lease_id)

    def find(self, order: UploadOrder) -> Path | None:
        """The file that an order asks for, if it is the very one that was offered."""
        packed = self._packed.get(order.lease_id)
        if packed is None or order.name != CHECKPOINT_FILE:
            return None
        return packed.path if (order.digest, order.size_bytes) == (packed.digest, packed.size_bytes) else None

    def end(self, lease_id: LeaseId) -> None:
        """It has been sent, or nobody wants it."""
        if self._packed.pop(lease_id, None) is not None:
            shutil.rmtree(self._leaving(lease_id), ignore_errors=True)

    def _offer(self, left: Left, checkpoint: CheckpointRef | None) -> None:
        self._seen_s.pop(left.offer.lease_id, None)
        self._desk.leave(left, checkpoint)
        if checkpoint is not None:
            log.info(
                "half-done unit offered",
                unit_key=left.offer.unit_key,
                done=round(checkpoint.progress, 3),
                bytes=checkpoint.size_bytes,
            )
            self._news.set()

    def _has_waited(self, left: Left) -> bool:
        now_s = self._clock.monotonic_s()
        return now_s - self._seen_s.setdefault(left.offer.lease_id, now_s) >= ASIDE_WITHIN_S

    def _pack(self, left: Left, limit_s: float | None) -> CheckpointRef | None:
        """None where it is not worth its way, or has gone meanwhile: the same unit may have come here again."""
        offer = left.offer
        place, known = place_of(offer.unit_key, self._work, self._tag), offer.checkpoint
        try:
            line, size_bytes = read_committed(place, offer.unit_key), packed_bytes(place, offer.spec)
            if line is None or len(self._packed) >= PACKED_MAX or not _has_room(size_bytes, self._cache, self._work):
                return None
            seconds = saved_s(line.compute_s, line.done, 0.0 if known is None else known.progress)
            if not is_worth_sending(size_bytes, seconds, self._budget.room, limit_s):
                return None
            packed = pack(place, offer.spec, self._leaving(offer.lease_id) / CHECKPOINT_FILE)
        except (InvalidError, OSError) as error:
            log.info("half-done unit stays here", unit_key=offer.unit_key, error=str(error))
            return None
        self._packed[offer.lease_id] = packed
        return CheckpointRef(digest=packed.digest, size_bytes=packed.size_bytes, progress=packed.line.done)

    def _leaving(self, lease_id: LeaseId) -> Path:
        """Given back before anybody looked at it, an offer may bear any name; raises InvalidError for such."""
        return self._work / _FOLDER / (self._tag + safe_name(lease_id))


def _has_room(size_bytes: int, cache: BlobCache, work: Path) -> bool:
    """Without what its owner wants to have free."""
    return shutil.disk_usage(work).free >= size_bytes + cache.reserve_bytes


async def bring(offer: LeaseOffer, *, transfers: Fetches, cache: BlobCache, work: Path, tag: str = "") -> None:
    """Have what another host of the account did of a unit lie where its next lease here goes on from.

    Whatever is wrong with it, or with the way to it, the unit begins here: it never fails for that.
    """
    given = offer.checkpoint
    if given is None or share_kept(offer.unit_key, work, tag) >= given.progress - _ROUNDING:
        return
    # It lies in the cache first, and then a second time in the unit's folder.
    if not is_worth_fetching(given.size_bytes, transfers.room) or not _has_room(2 * given.size_bytes, cache, work):
        return
    blob = BlobRef(name=CHECKPOINT_FILE, digest=given.digest, size_bytes=given.size_bytes, path=given.path)
    try:
        with cache.pinned([blob.digest]):
            # Longer than to compute it again, nobody waits for it.
            async with asyncio.timeout(max(FETCH_LEAST_S, offer.estimate_s * given.progress)):
                file = await transfers.fetch(blob)
            done = await asyncio.to_thread(arrive, file, offer.spec, work, tag)
    except (MemgridError, OSError, TimeoutError) as error:
        log.warning("checkpoint not taken", unit_key=offer.unit_key, error=str(error) or "it did not come in time")
    else:
        log.info("unit goes on from another host's work", unit_key=offer.unit_key, done=round(done, 3))
