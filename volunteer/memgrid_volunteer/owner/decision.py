"""What the owner policy says of a device."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from memgrid.units import Reason, ReasonCode


class Action(StrEnum):
    RUN = "run"
    THROTTLE = "throttle"
    """Compute for `duty` of the time."""
    PAUSE_KEEP = "pause_keep"
    """Stop computing, keep what is in memory: it goes on soon."""
    PAUSE_RELEASE = "pause_release"
    """Stop computing and give all memory back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`reason` is None only for RUN; `until` when it is known when this ends; `preference` the key that decided."""

    action: Action
    duty: float = 1.0
    """0 while paused."""
    reason: Reason | None = None
    until: datetime | None = None
    preference: str = ""

    @property
    def may_compute(self) -> bool:
        return self.action in (Action.RUN, Action.THROTTLE)

    @property
    def reason_for_grid(self) -> Reason:
        """What a grid hears when leases go back: what runs on this machine, and when, is nobody's business."""
        return Reason(code=ReasonCode.OWNER_PAUSED, text="the owner of the machine needs it")


RUN = Decision(action=Action.RUN)
