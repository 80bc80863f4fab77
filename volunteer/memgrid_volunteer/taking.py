"""Why nothing new is taken, and why nothing is computed: one answer for every moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from memgrid.units import NO_WISHES, Reason, ReasonCode, Wishes
from memgrid_volunteer.kinds.job import DeviceId
from memgrid_volunteer.owner.decision import Decision
from memgrid_volunteer.owner.preferences import KINDS, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that bears on it; each None or False when it does not stand against work."""

    decisions: Mapping[DeviceId, Decision]
    network_spared: Reason | None = None
    rest: Reason | None = None
    """Several units in a row could not be fetched."""
    data_away: str | None = None
    """The grid's store does not answer."""
    outbox_is_full: bool = False
    wishes: Wishes | None = NO_WISHES
    """None: the owner avoids every kind of unit."""
    grid_away: str | None = None
    is_computing: bool = False
    is_busy_for_others: bool = False
    """Devices compute for other grids, and none for this one."""
    holds_units: bool = False
    grid_reason: Reason | None = None
    """Why the grid gave nothing, from its last answer."""


def why_nothing_is_taken(situation: Situation) -> Reason | None:
    """None: the grid is asked for units. Otherwise what this machine or its owner has against it."""
    if not any(decision.may_compute for decision in situation.decisions.values()):
        return _most_telling(situation.decisions)
    if situation.wishes is None:
        return Reason(code=ReasonCode.NOT_TAKEN, text="its preferences avoid every kind of unit")
    if situation.network_spared is not None:
        return situation.network_spared
    if situation.rest is not None:
        return situation.rest
    if situation.outbox_is_full:
        return Reason(code=ReasonCode.OUTBOX_FULL, text="results that wait for the grid fill their room on this disk")
    if situation.data_away is not None:
        return Reason(code=ReasonCode.GRID_AWAY, text=situation.data_away)
    return None


def standing(situation: Situation) -> tuple[str, Reason | None]:
    """How a volunteer stands, as `status` shows it, and why it computes nothing; never neither.

    >>> from memgrid_volunteer.owner.decision import RUN
    >>> standing(Situation(decisions={"cpu": RUN}, is_computing=True))
    ('running', None)
    >>> standing(Situation(decisions={"cpu": RUN}, holds_units=True))[1].text
    "the next unit's inputs are on their way"
    """
    if not any(decision.may_compute for decision in situation.decisions.values()):
        return "paused", _most_telling(situation.decisions)
    if situation.is_computing:
        return "running", None
    if situation.grid_away is not None:
        return "away", Reason(code=ReasonCode.GRID_AWAY, text=situation.grid_away)
    own = why_nothing_is_taken(situation)
    if own is not None:
        return "idle", own
    if situation.holds_units:
        waits = "its next unit waits for a device" if situation.is_busy_for_others else _ON_THEIR_WAY
        return "idle", Reason(code=ReasonCode.FETCHING, text=waits)
    if situation.grid_reason is not None:
        return "idle", situation.grid_reason
    if situation.is_busy_for_others:
        return "idle", Reason(code=ReasonCode.FETCHING, text="other grids come first, by their shares")
    return "starting", Reason(code=ReasonCode.FETCHING, text="the grid has not answered yet")


def combined(stands: Sequence[tuple[str, Reason | None]]) -> tuple[str, Reason | None]:
    """How a volunteer of several grids stands: as with the one that has come furthest.

    >>> reason = Reason(code=ReasonCode.NO_WORK)
    >>> combined([("away", None), ("idle", reason), ("running", None)]), combined([("away", None), ("idle", reason)])
    (('running', None), ('idle', Reason(code=<ReasonCode.NO_WORK: 'no_work'>, text='')))
    """
    return min(stands, key=lambda each: _ORDER.index(each[0]))


_ORDER = ("running", "paused", "idle", "starting", "away", "ended")
_ON_THEIR_WAY = "the next unit's inputs are on their way"


def wishes_of(work: Work) -> Wishes | None:
    """What the owner's preferences wish of the grid; None when they leave no kind of unit.

    >>> sorted(wishes_of(Work(kinds_avoided=("train",))).kinds)
    ['evaluate', 'prefill', 'study']
    """
    kinds = frozenset(work.kinds or KINDS) - frozenset(work.kinds_avoided)
    if not kinds:
        return None
    minutes = work.max_runtime_minutes
    return Wishes(
        kinds=kinds,
        campaigns=frozenset(work.campaigns),
        avoided_campaigns=frozenset(work.campaigns_avoided),
        longest=None if minutes is None else min(timedelta(minutes=float(minutes)), timedelta(days=1)),
    )


def _most_telling(decisions: Mapping[DeviceId, Decision]) -> Reason:
    """Of the devices' reasons that which is more than a device being switched off."""
    reasons = [decision.reason for decision in decisions.values() if decision.reason is not None]
    others = [reason for reason in reasons if reason.code is not ReasonCode.DEVICE_DISABLED]
    return next(iter((*others, *reasons)), Reason(code=ReasonCode.NOT_SEEN, text="no device was looked at yet"))
