"""Moments and decisions as the owner of a machine reads them."""

from __future__ import annotations

from datetime import datetime

from memgrid_volunteer.owner.decision import Action, Decision
from memgrid_volunteer.owner.signals import Pause
from memgrid_volunteer.owner.spans import DAYS


def moment_text(moment: datetime, now: datetime) -> str:
    """By the clock of `now`'s zone; with the day where it is another one.

    >>> from datetime import UTC
    >>> now = datetime(2026, 3, 2, 20, 0, tzinfo=UTC)
    >>> moment_text(datetime(2026, 3, 2, 21, 5, tzinfo=UTC), now)
    '21:05'
    >>> moment_text(datetime(2026, 3, 3, 7, tzinfo=UTC), now), moment_text(datetime(2026, 4, 3, 7, tzinfo=UTC), now)
    ('tue 07:00', '2026-04-03 07:00')
    """
    wall = moment.astimezone(now.tzinfo)
    days = (wall.date() - now.date()).days
    if days == 0:
        return f"{wall:%H:%M}"
    return f"{DAYS[wall.weekday()]} {wall:%H:%M}" if 0 < days < 7 else f"{wall:%Y-%m-%d %H:%M}"


def pause_text(pause: Pause, now: datetime) -> str:
    """A pause in the owner's own words.

    >>> pause_text(Pause(device_id="cuda:1", is_until_restart=True), datetime.now().astimezone())
    'cuda:1 paused until the volunteer starts again'
    """
    until = "" if pause.until is None else f" until {moment_text(pause.until, now)}"
    until = " until the volunteer starts again" if pause.is_until_restart else until
    return f"{pause.device_id or 'all'} paused{until}".removeprefix("all ")


def decision_text(decision: Decision) -> str:
    """What a device does and why, in one line.

    >>> from memgrid.units import Reason, ReasonCode
    >>> decision_text(Decision(action=Action.PAUSE_KEEP, duty=0, reason=Reason(
    ...     code=ReasonCode.TOO_HOT, text="cuda:0 is at 84 °C; goes on as it cools down")))
    'paused: cuda:0 is at 84 °C; goes on as it cools down'
    """
    if decision.reason is None:
        return "computes"
    if decision.action is Action.THROTTLE:
        return f"computes for {decision.duty:.0%} of the time: {decision.reason.text}"
    return f"paused: {decision.reason.text}"
