"""What is done of a unit when its lease is given back: taken in, given to hosts of the same account, and let go.

Nobody else ever gets it. Whoever goes on from a checkpoint signs for work that their host has not done, so it must be
their own; and an account counts once among those that confirm a unit, whichever of its hosts computed which part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.digest import Digest
from memgrid.errors import UnknownIdError
from memgrid.log import get_logger
from memgrid.units import CHECKPOINT_FILE, CheckpointRef, HostId, LeaseId, Reason, Release, UploadOrder
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.kinds import kind_in
from memgrid_coordinator.policy.repositories import check_read, checkpoints_of, lease_of, upload_path
from memgrid_coordinator.policy.travelling import Circumstances, TravelRule, is_given_back, is_wanted
from memgrid_coordinator.records import Caller, Checkpoint, Event, Host, Lease, Unit
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.publishing import StoredBlob, stored_blob
from memgrid_coordinator.store import checkpoints, events, leases, units
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
_GRACE = timedelta(minutes=10)
"""Longer than it takes from bytes in the folder to the row that names them."""
_LISTED_AT_ONCE = 1000


class Travelling:
    """Its content lies in a folder of its own: no other repository serves it, and nothing else is in it."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        catalogue: Catalogue,
        blobs: BlobStore,
        ordering: JudgingRule,
        rule: TravelRule,
    ) -> None:
        self.blobs = blobs
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._catalogue = catalogue
        self._ordering = ordering
        self._rule = rule

    # in the transaction of a Sync

    def order(
        self, connection: Connection, host: Host, released: Sequence[Release], now: datetime
    ) -> tuple[UploadOrder, ...]:
        """Of the checkpoints that a host offers with the leases it gave back, those that are wanted."""
        offered = {one.lease_id: one for one in released if one.checkpoint is not None}
        if not offered or not self._rule.each_bytes_max:
            return ()
        found = leases.by_id(connection, offered)
        open_units = units.with_vacancies(connection, {lease.unit_id for lease in found.values()})
        orders = [
            self._order_one(connection, lease, unit, checkpoint, now)
            for lease_id, lease in found.items()
            for unit, checkpoint in [(open_units.get(lease.unit_id), offered[lease_id].checkpoint)]
            if unit is not None and checkpoint is not None
            if lease.host_id == host.host_id and lease.fence == offered[lease_id].fence and is_given_back(lease)
        ]
        return tuple(order for order in orders if order is not None)

    def _order_one(
        self, connection: Connection, lease: Lease, unit: Unit, offered: CheckpointRef, now: datetime
    ) -> UploadOrder | None:
        former = checkpoints.get(connection, lease.lease_id)
        if former is not None and former.digest == offered.digest:
            # Asked once more, for the answer was lost; what has come is not asked for again.
            return _order_of(former) if former.received_at is None else None
        spec, kind = kind_in(unit.spec)
        geometry = self._catalogue.geometry(connection, unit.model)
        account_bytes, all_bytes = checkpoints.sizes(connection, lease.account_id, lease.lease_id)
        around = Circumstances(
            unit_bytes_max=kind.checkpoint_bytes_max(spec, geometry),
            kept=checkpoints.newest(connection, [unit.unit_id], lease.account_id, now).get(unit.unit_id),
            account_bytes=account_bytes,
            all_bytes=all_bytes,
        )
        if not is_wanted(offered, lease.granted_at, around, self._rule):
            return None
        wanted = Checkpoint(
            lease_id=lease.lease_id,
            unit_id=lease.unit_id,
            host_id=lease.host_id,
            account_id=lease.account_id,
            fence=lease.fence,
            digest=offered.digest,
            size_bytes=offered.size_bytes,
            progress=offered.progress,
            received_at=None,
            ends_at=self._ordering.due_at(offered.size_bytes, now),
        )
        checkpoints.order(connection, wanted)
        events.append(connection, [_event("checkpoint_ordered", wanted, now)])
        return _order_of(wanted)

    # what `Uploads` asks of who orders

    async def wanted_uploads(self, host_id: HostId, lease_id: LeaseId) -> tuple[UploadOrder, ...]:
        """What this host may upload for this lease, now."""
        found, now = await self._find(lease_id), self._clock.now()
        if found is None or found.host_id != host_id or found.received_at is not None or found.ends_at <= now:
            return ()
        return (_order_of(found),)

    async def receive_upload(self, *, host_id: HostId, lease_id: LeaseId, digest: Digest) -> None:
        """An ordered checkpoint has arrived whole: from now on hosts of its account are told of it."""
        now = self._clock.now()

        def step(connection: Connection) -> Checkpoint | None:
            ordered = checkpoints.get(connection, lease_id)
            if ordered is None or (ordered.host_id, ordered.digest) != (host_id, digest):
                return None
            if not checkpoints.receive(connection, ordered, now, now + self._rule.keep):
                return None
            events.append(connection, [_event("checkpoint_kept", ordered, now)])
            return ordered

        kept = await self._store.write(step)
        if kept is not None:
            self._metrics.checkpoints.labels("kept").inc()
            log.info("checkpoint kept", lease_id=lease_id, bytes=kept.size_bytes, progress=round(kept.progress, 3))

    async def refuse_upload(self, *, host_id: HostId, lease_id: LeaseId, reason: Reason) -> None:
        """Count an upload that was turned down at the door; it costs its host no trust, for nothing rests on it."""
        self._metrics.refusals.labels("checkpoint", reason.code.value).inc()
        log.warning(
            "checkpoint turned down", host_id=host_id, lease_id=lease_id, reason=reason.code, text=reason.text
        )

    # what the data plane asks

    async def find_blob(self, caller: Caller, repository: str, digest: Digest) -> StoredBlob:
        """A checkpoint that a host of the caller's account left; raises UnknownIdError for everybody else."""
        check_read(caller, repository)
        found = await self._find(lease_of(repository))
        is_theirs = found is not None and found.account_id == caller.account_id and found.digest == digest
        if not is_theirs or found is None or found.received_at is None:
            raise UnknownIdError(f"blob {digest} is not in {repository}")
        return await asyncio.to_thread(stored_blob, self.blobs, digest)

    async def collect(self) -> int:
        """The sweep: forget what has ended, and remove the bytes that nothing names; returns how many went."""
        now = self._clock.now()
        if await self._store.read(lambda connection: checkpoints.any_ended(connection, now)):
            await self._store.write(lambda connection: checkpoints.forget_ended(connection, now))
        named = await self._store.read(checkpoints.named)
        return await asyncio.to_thread(self._remove_unnamed, named, now - _GRACE)

    def _remove_unnamed(self, named: frozenset[Digest], cutoff: datetime) -> int:
        removed, after = 0, None
        while page := self.blobs.kept_after(after, _LISTED_AT_ONCE):
            after = page[-1].digest
            gone = [blob for blob in page if blob.digest not in named]
            removed += sum(self.blobs.remove(blob.digest, unless_renewed_since=cutoff) is not None for blob in gone)
        return removed

    async def _find(self, lease_id: LeaseId) -> Checkpoint | None:
        return await self._store.read(lambda connection: checkpoints.get(connection, lease_id))


def offered_to(
    connection: Connection, host: Host, unit_ids: Sequence[int], now: datetime
) -> Mapping[int, CheckpointRef]:
    """What hosts of the same account have done of these units."""
    found = checkpoints.newest(connection, unit_ids, host.account_id, now)
    return {unit_id: _ref(one) for unit_id, one in found.items()}


def _ref(kept: Checkpoint) -> CheckpointRef:
    path = f"/v2/{checkpoints_of(kept.lease_id)}/blobs/{kept.digest}"
    return CheckpointRef(digest=kept.digest, size_bytes=kept.size_bytes, progress=kept.progress, path=path)


def _order_of(ordered: Checkpoint) -> UploadOrder:
    return UploadOrder(
        lease_id=ordered.lease_id,
        name=CHECKPOINT_FILE,
        digest=ordered.digest,
        size_bytes=ordered.size_bytes,
        path=upload_path(checkpoints_of(ordered.lease_id)),
    )


def _event(name: str, one: Checkpoint, now: datetime) -> Event:
    return Event(
        at=now,
        name=name,
        unit_id=one.unit_id,
        lease_id=one.lease_id,
        host_id=one.host_id,
        detail=f"{one.progress:.0%} done, {one.size_bytes} bytes",
    )
