"""Say how far a unit has got, no more often than people look."""

from __future__ import annotations

from collections.abc import Callable

from memgrid.clock import Clock
from memgrid_volunteer.kinds.job import Progress

Tell = Callable[[Progress], None]
TELL_EVERY_S = 0.5


class Telling:
    """Passes news on to `tell`: the last always, others when there has been none for a while."""

    def __init__(self, tell: Tell, clock: Clock) -> None:
        self._tell = tell
        self._clock = clock
        self._told_s = float("-inf")

    def say_it_goes_on(self, done: float) -> None:
        """A former run did so large a share of the unit, and it need not be done again."""
        self._tell(Progress(done=done, text=f"goes on at {done:.0%}"))

    def say(self, done: float, text: str, *, tokens: float, computed_s: float) -> None:
        """`done` is a share; `tokens` were done in `computed_s`, those of former runs with what they took."""
        now_s = self._clock.monotonic_s()
        if done < 1 and now_s - self._told_s < TELL_EVERY_S:
            return
        self._told_s = now_s
        speed = tokens / computed_s if computed_s > 0 else None
        self._tell(Progress(done=done, text=text, tokens_per_s=speed))


def say_nothing(progress: Progress) -> None:
    """For whoever does not want to hear."""
