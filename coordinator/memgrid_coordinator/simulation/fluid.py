"""When all campaigns could be done at the earliest: work as a fluid that every host computes whenever it is on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from memgrid_coordinator.simulation.hosts import VirtualHost
from memgrid_coordinator.simulation.units import Work


def fluid_s(hosts: Iterable[VirtualHost], works: Sequence[Work], end_s: float) -> float:
    """The lower bound of when the finite among these campaigns are done, each unit computed once.

    `hosts` are copies: their hours are made up until the end. `works` come in the order of their arrival.
    Infinite where the hosts' hours do not suffice.
    """
    changes: list[tuple[float, float]] = []
    for host in hosts:
        at_s = 0.0
        while (on_s := host.next_on(at_s)) < end_s:
            at_s = min(host.on_until_s, end_s)
            changes += [(on_s, host.flops_per_s), (at_s, -host.flops_per_s)]
    changes.sort()
    return _done_s(changes, [(work.arrives_s, work.flops) for work in works if work.units is not None])


def _done_s(changes: Sequence[tuple[float, float]], jobs: Sequence[tuple[float, float]]) -> float:
    """When all jobs (arrival, size) are done one after the other, at a rate that changes by so much at those times.

    >>> _done_s([(0.0, 2.0), (10.0, -1.0), (30.0, -1.0)], [(0.0, 10.0), (8.0, 14.0)])
    20.0
    """
    waiting = iter([*jobs, (math.inf, 0.0)])
    arrives_s, left = next(waiting)
    if arrives_s == math.inf:
        return 0.0
    at_s = rate = 0.0
    for until_s, change in [*changes, (math.inf, 0.0)]:
        while at_s < until_s:
            from_s = max(at_s, arrives_s)
            if from_s >= until_s or rate <= 0:
                break
            if from_s + left / rate > until_s:
                left -= (until_s - from_s) * rate
                break
            at_s = from_s + left / rate
            arrives_s, left = next(waiting)
            if arrives_s == math.inf:
                return at_s
        at_s, rate = until_s, rate + change
    return math.inf
