"""What keeps decisions from flapping: conditions that hold on for a while, and limits that are neared in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime

STEP_DUTIES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""The share of the time that each step leaves; the last one is a pause."""
PAUSED_STEP = len(STEP_DUTIES) - 1

WARM_BELOW_LIMIT_C = 3.0
COOL_BELOW_LIMIT_C = 5.0
WARM_STEP_S = 20.0
COOL_STEP_S = 60.0
POWER_STEP_S = 10.0
POWER_EASE_S = 60.0
POWER_MARGIN = 0.95
POWER_REST_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Latch:
    """A condition that counts once it has held for a while, and until it has been gone for a while."""

    is_on: bool = False
    is_raw: bool = False
    """What was seen last."""
    raw_since: datetime | None = None
    on_since: datetime | None = None

    def on_s(self, now: datetime) -> float:
        """How long it has counted; 0 when it does not."""
        return 0.0 if self.on_since is None else elapsed_s(self.on_since, now)

    def seen(self, is_raw: bool, now: datetime, *, rise_s: float, fall_s: float) -> Latch:
        """The latch after another look at the condition."""
        since = self.raw_since if is_raw == self.is_raw and self.raw_since is not None else now
        lasted_s = elapsed_s(since, now)
        is_on = lasted_s >= rise_s if is_raw and not self.is_on else self.is_on
        if self.is_on and not is_raw and lasted_s >= fall_s:
            is_on = False
        on_since = (self.on_since or now) if is_on else None
        return Latch(is_on=is_on, is_raw=is_raw, raw_since=since, on_since=on_since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How far a device is throttled because it nears a limit: 0 not at all, 4 paused."""

    step: int = 0
    changed_at: datetime | None = None

    @property
    def duty(self) -> float:
        return STEP_DUTIES[self.step]

    def to(self, step: int, now: datetime) -> Steps:
        return self if step == self.step else Steps(step=step, changed_at=now)

    def lasted_s(self, now: datetime) -> float:
        return math.inf if self.changed_at is None else elapsed_s(self.changed_at, now)


def by_temperature(steps: Steps, temperature_c: float | None, limit_c: float, now: datetime) -> Steps:
    """A pause at the limit, less and less duty in the degrees below it, more again when it has cooled down.

    >>> from datetime import UTC
    >>> by_temperature(Steps(), 84.0, 83.0, datetime(2026, 1, 1, tzinfo=UTC)).step
    4
    """
    if temperature_c is None:
        return replace(steps, step=0)
    if temperature_c >= limit_c:
        return steps.to(PAUSED_STEP, now)
    if temperature_c >= limit_c - WARM_BELOW_LIMIT_C:
        may_step = steps.step < PAUSED_STEP - 1 and steps.lasted_s(now) >= WARM_STEP_S
        return steps.to(steps.step + 1, now) if may_step else steps
    is_cool = temperature_c <= limit_c - COOL_BELOW_LIMIT_C
    if steps.step and is_cool and steps.lasted_s(now) >= COOL_STEP_S:
        return steps.to(steps.step - 1, now)
    return steps


def by_power(steps: Steps, power_w: float | None, limit_w: float, now: datetime, *, is_computing: bool) -> Steps:
    """Less duty while it draws more than the limit; more again when that much more would still be below it.

    >>> from datetime import UTC
    >>> by_power(Steps(), 310.0, 300.0, datetime(2026, 1, 1, tzinfo=UTC), is_computing=True).duty
    0.75
    """
    if power_w is None:
        return replace(steps, step=0)
    if power_w > limit_w:
        return _less_power(steps, now)
    lasted_s = steps.lasted_s(now)
    if steps.step == 0 or lasted_s < POWER_EASE_S:
        return steps
    if steps.step == PAUSED_STEP:
        return steps.to(steps.step - 1, now) if power_w <= POWER_REST_SHARE * limit_w else steps
    # While it rests for another reason, what it draws says nothing about the next step.
    expected_w = power_w * STEP_DUTIES[steps.step - 1] / steps.duty
    return steps.to(steps.step - 1, now) if is_computing and expected_w <= POWER_MARGIN * limit_w else steps


def _less_power(steps: Steps, now: datetime) -> Steps:
    if steps.step == PAUSED_STEP:
        return steps
    needed_s = (0.0, POWER_STEP_S, POWER_STEP_S, POWER_EASE_S)[steps.step]
    return steps.to(steps.step + 1, now) if steps.lasted_s(now) >= needed_s else steps


def elapsed_s(since: datetime, now: datetime) -> float:
    """Seconds since; a clock that was put back must not make anything last for a day.

    >>> from datetime import UTC
    >>> elapsed_s(datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))
    inf
    """
    return math.inf if now < since else (now - since).total_seconds()
