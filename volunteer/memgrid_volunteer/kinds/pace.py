"""How much of the time a worker computes: rests between micro-batches, as long as the supervisor's word says."""

from __future__ import annotations

import math
import threading

from memgrid.clock import Clock

SHORTEST_REST_S = 0.005
"""Less than this is owed until more has gathered: the system could not sleep so short anyway."""
_CREDIT_MAX_S = 0.1
"""Of a rest that took longer than it had to, so much counts for the next one."""


class Pace:
    """Set by one thread, kept by another; a worker begins at full speed.

    Only the time between two rests counts, so that changes apply at once and a long pause is not made up for.
    """

    def __init__(self, clock: Clock, changed: threading.Condition | None = None) -> None:
        self._clock = clock
        self._changed = changed or threading.Condition()
        self._duty = 1.0
        self._worked_s = 0.0
        self._since_s = self._began_s = clock.monotonic_s()
        self._rested_s = self._held_s = 0.0

    @property
    def duty(self) -> float:
        return self._duty

    def set(self, duty: float) -> None:
        """Compute for `duty` of the time from now on; whoever rests looks anew how long."""
        with self._changed:
            self._duty = min(max(duty, 0.0), 1.0)
            self._changed.notify_all()

    def begin(self, computed_s: float = 0.0) -> None:
        """A unit's work starts now, or goes on after so much of it: what was before was none of it.

        While it is to hold, not even the first micro-batch begins.
        """
        with self._changed:
            while self._duty <= 0:
                self._changed.wait()
            self._worked_s = self._rested_s = self._held_s = 0.0
            self._since_s = self._clock.monotonic_s()
            self._began_s = self._since_s - computed_s

    @property
    def computed_s(self) -> float:
        """Spent computing on the present unit: rests and holds left out."""
        return self._clock.monotonic_s() - self._began_s - self._rested_s

    @property
    def spent_s(self) -> float:
        """What the present unit takes here: with the rests that the pace demands, for so slow this machine is now."""
        return self._clock.monotonic_s() - self._began_s - self._held_s

    def rest(self) -> float:
        """Sleep for as long as is owed for the work since the last rest, and while it is to hold; seconds slept."""
        with self._changed:
            began_s = self._clock.monotonic_s()
            self._worked_s += began_s - self._since_s
            rested_s = 0.0
            while (owed_s := rest_s(self._worked_s, self._duty) - rested_s) >= SHORTEST_REST_S:
                holds, former_s = math.isinf(owed_s), rested_s
                self._changed.wait(None if holds else owed_s)
                rested_s = self._clock.monotonic_s() - began_s
                self._held_s += (rested_s - former_s) * holds
            self._worked_s = worked_after(self._worked_s, rested_s, self._duty)
            self._since_s = began_s + rested_s
            self._rested_s += rested_s
            return rested_s


def rest_s(worked_s: float, duty: float) -> float:
    """How long to rest after so much work, that it has been `duty` of the time.

    >>> rest_s(0.3, 0.75), rest_s(0.3, 1.0), rest_s(0.3, 0.0)
    (0.1, 0.0, inf)
    """
    if duty <= 0:
        return math.inf
    return max(0.0, round(worked_s * (1 - duty) / duty, 9))


def worked_after(worked_s: float, rested_s: float, duty: float) -> float:
    """The work that is still to be rested for; less than nothing when the rest was longer than owed.

    >>> worked_after(1.0, 0.25, 0.5), worked_after(1.0, 1.0625, 0.5)
    (0.75, -0.0625)
    """
    if duty >= 1 or duty <= 0:
        return 0.0
    return max(worked_s - rested_s * duty / (1 - duty), -_CREDIT_MAX_S * duty / (1 - duty))
