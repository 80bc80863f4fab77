"""How fast a running unit gets on, and how much of it is left."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Course:
    """One unit from its start; time in which its device was held back does not count."""

    began_s: float
    estimate_s: float = 0.0
    """What the grid thought it would take; 0 when nobody knows."""
    held_since_s: float | None = None
    held_s: float = 0.0
    first_heard: tuple[float, float] | None = None
    """When it first told of its progress, in seconds worked, and the share that was done by then."""

    def hold(self, now_s: float) -> None:
        if self.held_since_s is None:
            self.held_since_s = now_s

    def go_on(self, now_s: float) -> None:
        if self.held_since_s is not None:
            self.held_s += now_s - self.held_since_s
            self.held_since_s = None

    def worked_s(self, now_s: float) -> float:
        until_s = now_s if self.held_since_s is None else self.held_since_s
        return max(0.0, until_s - self.began_s - self.held_s)

    def left_s(self, now_s: float, share: float | None) -> float | None:
        """Seconds of work still to come; None while nobody can tell."""
        worked_s = self.worked_s(now_s)
        if share is not None and self.first_heard is None:
            self.first_heard = (worked_s, share)
        return left_s(worked_s, share, self.first_heard, self.estimate_s)


def left_s(
    worked_s: float, share: float | None, first_heard: tuple[float, float] | None, estimate_s: float
) -> float | None:
    """From what has been done since a unit was first heard of: one that goes on from a checkpoint begins far ahead.

    >>> left_s(30.0, 0.75, (10.0, 0.5), 0.0)
    20.0
    >>> left_s(12.0, None, None, 40.0)
    28.0
    """
    if share is not None and first_heard is not None:
        since_s, done = worked_s - first_heard[0], share - first_heard[1]
        if done > 0 and since_s > 0:
            return (1 - share) * since_s / done
        return (1 - share) * estimate_s if estimate_s else None
    return max(0.0, estimate_s - worked_s) if estimate_s else None
