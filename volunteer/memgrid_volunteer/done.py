"""A unit as it ended here, and what an hour or a day has brought."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from memgrid.units import UnitKey
from memgrid_volunteer.kinds.job import DeviceId


class Outcome(StrEnum):
    """How a unit ended here, then how the grid judged it."""

    AWAITING = "awaiting"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """Its report was turned down at the door."""
    GIVEN_BACK = "given_back"
    STOPPED = "stopped"
    """By the owner, or by the grid; it may go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """A document that needed a unit: its campaign, and its cube as `namespace/name:version` once there is one."""

    cube: str
    campaign_id: str
    campaign: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneUnit:
    """One unit as it ended on one device."""

    number: int = 0
    """Its place in the history, from 1; 0 before it has one."""
    at: datetime
    unit_key: UnitKey
    kind: str = ""
    work: str = ""
    grid: str = ""
    """The address of the grid it was for."""
    device_id: DeviceId = ""
    tokens: int = 0
    compute_s: float = 0.0
    utilisation: float | None = None
    """The unit's own floating-point operations a second, as a share of what its device was measured to reach."""
    outcome: Outcome = Outcome.AWAITING
    reason: str = ""
    credit_flops: int = 0
    fate: tuple[Fate, ...] = ()
    """What the grid says has become of it; empty until it was asked."""

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens / self.compute_s if self.tokens and self.compute_s > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What one day, or one hour, has brought; a day is one of the machine's own clock."""

    at: datetime
    units: int = 0
    accepted: int = 0
    rejected: int = 0
    tokens: int = 0
    compute_s: float = 0.0
    credit_flops: int = 0
