"""The leases held here, from offer to result: plain bookkeeping, no waiting."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from memgrid.units import CheckpointRef, HeldLease, LeaseId, LeaseOffer, ModelFiles, Reason, ReasonCode, Release

AHEAD_UNITS_MIN = 2
"""For each device one to run and one to fetch meanwhile."""
AHEAD_UNITS_MAX = 8
_OF_A_WILL = (ReasonCode.OWNER_PAUSED, ReasonCode.LEAVING)
AHEAD_S = 4.0
"""Short units are queued up to this much work for each device, or a round trip would cost more than a unit."""


class Stage(StrEnum):
    OFFERED = "offered"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    """Computed, and on its way into the outbox."""


@dataclass(slots=True, kw_only=True)
class Held:
    """One lease and how far it has got."""

    offer: LeaseOffer
    model: ModelFiles
    stage: Stage = Stage.OFFERED
    began_s: float = 0.0
    told: float | None = None
    """The share that is done, by the worker's own word."""
    was_fetched_again: bool = False
    """Its inputs turned out to be damaged; once is bad luck."""

    def progress(self, now_s: float) -> float:
        """What the worker said, else a guess from the time it has run."""
        if self.told is not None:
            return self.told
        if self.stage is not Stage.RUNNING or self.offer.estimate_s <= 0:
            return 0.0
        return min(0.95, max(0.0, now_s - self.began_s) / self.offer.estimate_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A lease that went back because its owner wants the machine: what is done of its unit may be worth sending."""

    offer: LeaseOffer
    reason: Reason


@dataclass(slots=True)
class Desk:
    """Every lease is in one stage; those given back wait here until the coordinator has been told."""

    _held: dict[LeaseId, Held] = field(default_factory=dict)
    _released: dict[LeaseId, Release] = field(default_factory=dict)
    _left: dict[LeaseId, Left] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._held)

    def holds(self, lease_id: LeaseId) -> bool:
        return lease_id in self._held

    def take(self, offer: LeaseOffer, model: ModelFiles) -> bool:
        """Put an offer on the desk; False when it lies there already or is just being given back."""
        if offer.lease_id in self._held or offer.lease_id in self._released:
            return False
        self._held[offer.lease_id] = Held(offer=offer, model=model)
        return True

    def find(self, lease_id: LeaseId) -> Held | None:
        return self._held.get(lease_id)

    def remove(self, lease_id: LeaseId) -> Held | None:
        """It is done, or nobody wants it any more."""
        return self._held.pop(lease_id, None)

    def give_back(self, lease_id: LeaseId, reason: Reason) -> bool:
        """Off the desk, and to be told; False when it was not there."""
        held = self._held.pop(lease_id, None)
        if held is None:
            return False
        self._released[lease_id] = Release(lease_id=lease_id, fence=held.offer.fence, reason=reason)
        if reason.code in _OF_A_WILL:
            self._left[lease_id] = Left(offer=held.offer, reason=reason)
        return True

    def give_all_back(self, reason: Reason) -> int:
        return sum(self.give_back(lease_id, reason) for lease_id in list(self._held))

    def released(self) -> tuple[Release, ...]:
        return tuple(self._released.values())

    def told(self, released: tuple[Release, ...]) -> None:
        """The coordinator has been told of these; not of a checkpoint that came to one of them meanwhile."""
        for release in released:
            if self._released.get(release.lease_id) == release:
                del self._released[release.lease_id]

    def left(self) -> tuple[Left, ...]:
        """Leases given back, of which nobody has looked yet whether there is something to leave."""
        return tuple(self._left.values())

    def leave(self, left: Left, checkpoint: CheckpointRef | None) -> None:
        """That has been looked at; the coordinator is to be told of what there is, if so once more of the lease."""
        offer = left.offer
        self._left.pop(offer.lease_id, None)
        if checkpoint is not None:
            self._released[offer.lease_id] = Release(
                lease_id=offer.lease_id, fence=offer.fence, reason=left.reason, checkpoint=checkpoint
            )

    def all(self) -> tuple[Held, ...]:
        """Every lease that is held, in the order in which they came."""
        return tuple(self._held.values())

    def held(self, now_s: float) -> tuple[HeldLease, ...]:
        return tuple(
            HeldLease(lease_id=held.offer.lease_id, fence=held.offer.fence, progress=held.progress(now_s))
            for held in self._held.values()
        )

    def wanted(self, devices: int) -> int:
        """How many more leases would keep so many devices busy."""
        estimates = [held.offer.estimate_s for held in self._held.values()]
        return wanted(len(estimates), sum(estimates), devices)


def wanted(held: int, held_s: float, devices: int = 1) -> int:
    """How many more units to ask for while so many, of so much work, are held for so many devices.

    >>> wanted(0, 0), wanted(1, 20.0), wanted(2, 20.0), wanted(2, 1.0)
    (2, 1, 0, 6)
    >>> wanted(0, 0, devices=4), wanted(3, 60.0, devices=0)
    (8, 0)
    """
    if held < AHEAD_UNITS_MIN * devices:
        return AHEAD_UNITS_MIN * devices - held
    if not devices:
        return 0
    # Below this every unit is as short as any other, whatever its estimate says.
    unit_s = max(held_s / held, AHEAD_S / AHEAD_UNITS_MAX)
    return max(0, math.ceil(AHEAD_S * devices / unit_s) - held)
