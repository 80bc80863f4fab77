"""Did the machine sleep, or its clock jump? Two clocks that should run alike tell it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from memgrid.text import seconds_text

JUMP_S = 30.0
"""Less is a busy machine, or a clock being put right."""


@dataclass(slots=True)
class Timekeeper:
    """Looked at often; the monotonic clock stands still while a machine sleeps, the other one goes on."""

    _now: datetime | None = None
    _monotonic_s: float = 0.0

    def jumped_s(self, now: datetime, monotonic_s: float) -> float:
        """By how much the time of day has run ahead of the monotonic clock since the last look; 0 for a little.

        >>> from datetime import UTC, timedelta
        >>> keeper, noon = Timekeeper(), datetime(2026, 1, 1, 12, tzinfo=UTC)
        >>> keeper.jumped_s(noon, 5.0), keeper.jumped_s(noon + timedelta(hours=3), 6.0)
        (0.0, 10799.0)
        """
        former, former_s = self._now, self._monotonic_s
        self._now, self._monotonic_s = now, monotonic_s
        if former is None:
            return 0.0
        ahead_s = (now - former).total_seconds() - (monotonic_s - former_s)
        return ahead_s if abs(ahead_s) >= JUMP_S else 0.0


def jump_text(jumped_s: float) -> str:
    """What the owner reads.

    >>> jump_text(10799.0)
    'the machine slept or its clock ran ahead, 2 h 59 min; asking the grid anew'
    >>> jump_text(-60.0)
    'the clock was put back 1 min 0 s; asking the grid anew'
    """
    what = "the machine slept or its clock ran ahead," if jumped_s > 0 else "the clock was put back"
    return f"{what} {seconds_text(abs(jumped_s))}; asking the grid anew"
