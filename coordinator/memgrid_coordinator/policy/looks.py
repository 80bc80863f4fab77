"""How often an audit looks before it says anything against a host."""

from __future__ import annotations

from collections.abc import Sequence

from memgrid.kinds.audit import Zone
from memgrid_coordinator.records import Look

Seen = tuple[Look, Zone]


def next_look(seen: Sequence[Seen]) -> Look | None:
    """What an audit does next; None when it has seen enough.

    Something suspicious is followed by a look at another part. A fault has to show again when the same part is
    computed in another way: what a checker got wrong once, by a bug or a flipped bit, is nobody's fault.

    >>> next_look([]), next_look([(Look.FIRST, Zone.PASS)]), next_look([(Look.FIRST, Zone.FAULT)])
    (<Look.FIRST: 'first'>, None, <Look.AGAIN: 'again'>)
    """
    if not seen:
        return Look.FIRST
    look, zone = seen[-1]
    if zone is Zone.FAULT and look is not Look.AGAIN:
        return Look.AGAIN
    if zone is Zone.SUSPICIOUS and look is Look.FIRST:
        return Look.ELSEWHERE
    return None


def zone_of(seen: Sequence[Seen]) -> Zone:
    """What an audit comes to: a fault only when it was confirmed, a pass only when nothing was out of place.

    >>> zone_of([(Look.FIRST, Zone.FAULT), (Look.AGAIN, Zone.PASS)])
    <Zone.SUSPICIOUS: 'suspicious'>
    """
    if seen[-1] == (Look.AGAIN, Zone.FAULT):
        return Zone.FAULT
    return Zone.PASS if all(zone is Zone.PASS for _, zone in seen) else Zone.SUSPICIOUS
