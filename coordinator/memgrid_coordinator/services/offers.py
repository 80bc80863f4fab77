"""What a host is told: its leases and their inputs, how its reports ended, which leases are gone."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from memgrid.digest import Digest
from memgrid.errors import UnknownIdError
from memgrid.kinds.prefill import past_file
from memgrid.kinds.refusal import RefusedError
from memgrid.units import (
    BlobRef,
    Cancellation,
    CheckpointRef,
    HostId,
    LeaseId,
    LeaseOffer,
    Reason,
    ReasonCode,
    VerdictNotice,
)
from memgrid_coordinator.lifecycle import ENDED_UNITS, LeaseState
from memgrid_coordinator.policy.deadlines import estimate_s
from memgrid_coordinator.policy.kinds import kind_in
from memgrid_coordinator.records import Host, Lease, Unit
from memgrid_coordinator.store import leases, units
from memgrid_coordinator.store.blobs import BlobStore


class PastLostError(Exception):
    """A cache that the unit continues was damaged, and is being computed again: the unit can wait."""


def new_lease(unit: Unit, host: Host, lease_id: str, now: datetime, deadline_at: datetime) -> Lease:
    return Lease(
        lease_id=LeaseId(lease_id),
        unit_id=unit.unit_id,
        unit_key=unit.key,
        host_id=host.host_id,
        account_id=host.account_id,
        fence=unit.fence + 1,
        state=LeaseState.LEASED,
        granted_at=now,
        deadline_at=deadline_at,
        reported_at=None,
        outputs=(),
        sketch=b"",
        facts=None,
        reason=None,
        network=host.network,
    )


def offer_of(
    lease: Lease, unit: Unit, host: Host, inputs: tuple[BlobRef, ...], checkpoint: CheckpointRef | None
) -> LeaseOffer:
    """A lease as its host is told of it."""
    return LeaseOffer(
        lease_id=lease.lease_id,
        fence=lease.fence,
        unit_key=lease.unit_key,
        spec=unit.spec,
        model=unit.model,
        inputs=inputs,
        deadline_at=lease.deadline_at,
        estimate_s=estimate_s(unit.flops, host.flops_per_s),
        checkpoint=checkpoint,
    )


def inputs_of(connection: Connection, unit: Unit, blobs: BlobStore) -> tuple[BlobRef, ...]:
    """The files a unit reads: what its spec names, and the accepted caches it continues.

    Raises RefusedError (STATE_MISSING) when one has left the content store, PastLostError when a cache has.
    """
    spec, kind = kind_in(unit.spec)
    files = [(file.name, file.digest) for file in kind.inputs(spec)]
    if unit.parent_id is not None:
        for index, ancestor in enumerate(units.ancestors(connection, unit.unit_id)):
            if ancestor.output_digest is None:
                raise PastLostError
            files.append((past_file(index), ancestor.output_digest))
    return tuple(_ref(name, digest, blobs) for name, digest in files)


def _ref(name: str, digest: Digest, blobs: BlobStore) -> BlobRef:
    try:
        size_bytes = blobs.size_of(digest)
    except UnknownIdError:
        raise RefusedError(ReasonCode.STATE_MISSING, f"its input {name}, {digest[:19]}…, is gone") from None
    return BlobRef(name=name, digest=digest, size_bytes=size_bytes, path=input_path(digest))


def input_path(digest: Digest) -> str:
    """Where the data plane serves the inputs of units."""
    return f"/v2/grid/inputs/blobs/{digest}"


def verdict_of(lease_id: LeaseId, settled: leases.Settled | None) -> VerdictNotice | None:
    """What a host is told of a report it awaits; None while it is undecided."""
    if settled is None:
        gone = Reason(code=ReasonCode.UNKNOWN_LEASE, text="this grid knows no such lease of yours")
        return VerdictNotice(lease_id=lease_id, verdict="cancelled", reason=gone, credit_flops=0)
    agrees = Reason(code=ReasonCode.AGREES)
    # Paid, and let go since because its unit is wanted once more: it agreed all the same.
    let_go = settled.state is LeaseState.CANCELLED and settled.reason == agrees
    if let_go or (settled.state is LeaseState.AGREED and settled.unit_state in ENDED_UNITS):
        return VerdictNotice(lease_id=lease_id, verdict="accepted", reason=agrees, credit_flops=settled.flops)
    if settled.state in (LeaseState.LEASED, LeaseState.REPORTED, LeaseState.AGREED):
        return None
    verdict = "rejected" if settled.state is LeaseState.REJECTED else "cancelled"
    reason = settled.reason or Reason(code=ReasonCode.LEASE_ENDED)
    return VerdictNotice(lease_id=lease_id, verdict=verdict, reason=reason, credit_flops=0)


def cancellation_of(lease_id: LeaseId, lease: Lease | None, host_id: HostId) -> Cancellation:
    if lease is None or lease.host_id != host_id:
        reason = Reason(code=ReasonCode.UNKNOWN_LEASE, text="this grid knows no such lease of yours")
    elif lease.state is LeaseState.EXPIRED:
        reason = Reason(code=ReasonCode.LEASE_EXPIRED, text=f"it ran out at {lease.deadline_at:%H:%M:%S} UTC")
    else:
        reason = lease.reason or Reason(code=ReasonCode.LEASE_ENDED, text=f"it is {lease.state}")
    return Cancellation(lease_id=lease_id, reason=reason)
