"""May we run now? One pure decision over what the owner wants and what the machine is doing."""

from __future__ import annotations

from dataclasses import dataclass

from memgrid.units import Reason, ReasonCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What was seen at one moment."""

    paused: bool
    """The owner said `memgrid volunteer pause`."""


def may_run(situation: Situation) -> Reason | None:
    """None: go ahead. Otherwise why not; running work is then stopped and its leases are given back.

    >>> may_run(Situation(paused=True)).code
    <ReasonCode.OWNER_PAUSED: 'owner_paused'>
    """
    if situation.paused:
        return Reason(code=ReasonCode.OWNER_PAUSED, text="the owner of the machine has paused it")
    return None
