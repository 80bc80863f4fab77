"""Who of a crowd is worked for now, who waits in line, and when everybody else is to come back.

A lane works on so many calls at once and lets so many wait, first come, first served. Whoever comes beyond that is
turned away at once with an appointment: appointments follow each other at the rate at which the lane works, so that
the refused come back one by one, and a newcomer is never put before them. The rate is seen, not set: a full lane
finishes `working_max` calls in the time that one takes (Little's law). An appointment is the latest that somebody is
let in: places that nobody came for go to whoever asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

FIRST_GUESS_S = 0.1
"""How long a call is worked on, before any was; rather too long, so that nobody is called too soon."""
LONGEST_S = 600.0
"""The furthest appointment: a flood of strangers that never come back must not fill the whole day."""
LOOK_AGAIN_S = 40.0
"""Nobody is sent away for longer. Appointments beyond that are given in the middle of a storm, when turning others
away takes most of the time; whoever looks in sooner may find that it is over."""
_MEMORY = 64
"""Calls over which the time of one is averaged."""
_OF_THE_ROOM_FOR_NEWCOMERS = 0.25
_OF_THE_ROOM_FOR_APPOINTMENTS = 0.75


class LaneName(StrEnum):
    """Calls of one lane never wait for those of another."""

    INSIDE = "inside"
    """Hosts that are in: they bring reports, hold leases, want work."""
    DOOR = "door"
    """Hosts that enrol or log in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRule:
    """What a lane takes: calls worked on at once, calls waiting, and how long the last of these may have to wait."""

    working_max: int
    waiting_max: int
    wait_max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """How a lane stands. Moments are seconds on a clock that only goes forward.

    >>> lane = Lane(rule=LaneRule(working_max=2, waiting_max=8, wait_max_s=10.0), work_s=0.5)
    >>> lane.calls_per_s, lane.room, lane.may_start, lane.may_wait()
    (4.0, 8, True, True)
    """

    rule: LaneRule
    working: int = 0
    waiting: int = 0
    work_s: float = FIRST_GUESS_S
    """How long a call is worked on, on average."""
    promised_until_s: float = -math.inf
    """The last appointment."""
    postponed_until_s: float = -math.inf
    """The last appointment of those who kept an earlier one and found the line full."""
    passed_until_s: float = -math.inf
    """When those who were let pass will have been worked for, if each takes its share of the rate."""

    @property
    def calls_per_s(self) -> float:
        """What the lane gets done when it is full."""
        return self.rule.working_max / self.work_s

    @property
    def room(self) -> int:
        """How many may wait: nobody longer than the rule says, even where the disk has become slow."""
        return max(1, min(self.rule.waiting_max, int(self.calls_per_s * self.rule.wait_max_s)))

    @property
    def may_start(self) -> bool:
        """Whether the next call is worked on at once; nobody overtakes those who wait."""
        return self.working < self.rule.working_max and not self.waiting

    def may_wait(self, share: float = 1.0) -> bool:
        """Whether there is room in line for somebody who may fill `share` of it."""
        return self.waiting < max(1, int(self.room * share))


def worked(lane: Lane, seconds: float) -> Lane:
    """The lane after it has worked on a call for so long."""
    return replace(lane, work_s=max(1e-4, lane.work_s + (seconds - lane.work_s) / _MEMORY))


def appoint(lane: Lane, now_s: float) -> tuple[Lane, float]:
    """The next appointment, behind everybody who waits or has one; the moment, at most LONGEST_S away.

    >>> lane = Lane(rule=LaneRule(working_max=2, waiting_max=8, wait_max_s=10.0), work_s=0.5, waiting=8)
    >>> lane, first_s = appoint(lane, 100.0)
    >>> lane, second_s = appoint(lane, 100.0)
    >>> first_s, second_s
    (102.25, 102.5)
    """
    earliest_s = max(lane.promised_until_s, now_s + lane.waiting / lane.calls_per_s, lane.passed_until_s)
    at_s = min(earliest_s + 1 / lane.calls_per_s, now_s + LONGEST_S)
    return replace(lane, promised_until_s=max(lane.promised_until_s, at_s)), at_s


def postpone(lane: Lane, now_s: float) -> tuple[Lane, float]:
    """Another appointment for somebody who came when told and found the line full: behind those of their kind only.

    That happens when calls have become slower than they were when the appointments were given.
    """
    earliest_s = max(lane.postponed_until_s, now_s + lane.waiting / 2 / lane.calls_per_s)
    at_s = min(earliest_s + 1 / lane.calls_per_s, now_s + LONGEST_S)
    return replace(lane, postponed_until_s=max(lane.postponed_until_s, at_s)), at_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """What somebody is told who asks to be let in: their appointment, or None for: now."""

    lane: Lane
    appointment_s: float | None = None


def knock(lane: Lane, now_s: float, appointment_s: float | None) -> Knock:
    """Let somebody pass to the line, or say when to come; whoever kept an appointment goes before newcomers.

    A place that somebody was called for who did not come goes to a newcomer: a slot must have gone by unused.
    """
    slot_s = 1 / lane.calls_per_s
    passed = replace(lane, passed_until_s=max(lane.passed_until_s, now_s) + slot_s)
    if appointment_s is not None and appointment_s <= now_s:
        if lane.may_wait(_OF_THE_ROOM_FOR_APPOINTMENTS):
            return Knock(lane=passed)
        lane, at_s = postpone(lane, now_s)
        return Knock(lane=lane, appointment_s=at_s)
    # Who looks in early was here before whoever comes only now.
    is_next = appointment_s is not None or lane.promised_until_s <= now_s
    ahead_max_s = lane.room * _OF_THE_ROOM_FOR_NEWCOMERS * slot_s if is_next else -slot_s
    if lane.passed_until_s <= now_s + ahead_max_s and lane.may_wait(_OF_THE_ROOM_FOR_NEWCOMERS):
        return Knock(lane=passed)
    if appointment_s is not None:  # too early: it stands
        return Knock(lane=lane, appointment_s=appointment_s)
    lane, at_s = appoint(lane, now_s)
    return Knock(lane=lane, appointment_s=at_s)


def wait_s(appointment_s: float, now_s: float) -> float:
    """How long to send somebody away for; those with far appointments look in before, as evenly as these are spread.

    >>> wait_s(112.0, 100.0), wait_s(190.5, 100.0)
    (12.0, 30.5)
    """
    left_s = max(0.0, appointment_s - now_s)
    half_s = LOOK_AGAIN_S / 2
    return left_s if left_s <= LOOK_AGAIN_S else half_s + left_s % half_s
