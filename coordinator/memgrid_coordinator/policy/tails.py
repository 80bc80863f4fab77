"""Which running unit an idle host computes too when nothing else is left, so that nobody waits for the slowest.

The rule is that of LATE: the unit that will take longest to end, only on a host that ends it clearly sooner, and
only few copies at once. (M. Zaharia et al., Improving MapReduce performance in heterogeneous environments, 2008.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memgrid.units import UnitKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRule:
    """How much may be spent on being done sooner."""

    speedup_min: float = 1.5
    """A copy must be expected to end so many times sooner than what runs already."""
    elapsed_min_s: float = 30.0
    """A lease that began so lately is nothing to help with."""
    silent_max_s: float = 900.0
    """A host not heard of for so long is expected never to end."""
    copies_max: int = 2
    """Running at once for one unit, the first included."""
    copied_share_max: float = 0.05
    """Copies running at once, as a share of the campaign's units; at least one may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """One running unit, by the lease of it that will end first."""

    unit_key: UnitKey
    flops: int
    elapsed_s: float
    """Since the lease began."""
    estimate_s: float
    """How long it should take from beginning to end, the host's queue before it included."""
    silent_s: float = 0.0
    """Since the host was last heard of."""
    copies: int = 1
    """How many leases of it run."""


def remaining_s(running: Running, rule: TailRule) -> float:
    """How long a running unit is still expected to take; one that is late takes the longer the later it is.

    >>> def left(elapsed_s, silent_s=0.0):
    ...     lease = Running(unit_key=UnitKey("a"), flops=1, elapsed_s=elapsed_s, estimate_s=60.0, silent_s=silent_s)
    ...     return remaining_s(lease, TailRule())
    >>> left(20.0), left(60.0), left(300.0), left(20.0, silent_s=3600.0)
    (40.0, 6.0, 240.0, inf)
    """
    if running.silent_s > rule.silent_max_s:
        return math.inf
    return max(
        running.estimate_s - running.elapsed_s, running.elapsed_s - running.estimate_s, 0.1 * running.estimate_s
    )


def worth_copying(running: Sequence[Running], *, flops_per_s: float, units: int, rule: TailRule) -> UnitKey | None:
    """The unit that an idle host of this speed should compute too, or None; ask only when nothing is open.

    `running` are the units that this host may have: of other accounts, never computed by its own. `units` is how
    many the campaign has.

    >>> def unit(name, estimate_s):
    ...     return Running(unit_key=UnitKey(name), flops=10**12, elapsed_s=30.0, estimate_s=estimate_s)
    >>> worth_copying([unit("slow", 400.0), unit("slower", 900.0)], flops_per_s=1e10, units=100, rule=TailRule())
    'slower'
    >>> worth_copying([unit("fast", 120.0)], flops_per_s=1e10, units=100, rule=TailRule())
    """
    copies = sum(one.copies - 1 for one in running)
    if copies >= max(1.0, rule.copied_share_max * units):
        return None
    worth = [
        one
        for one in running
        if one.copies < rule.copies_max
        and one.elapsed_s >= rule.elapsed_min_s
        and remaining_s(one, rule) >= rule.speedup_min * one.flops / max(flops_per_s, 1.0)
    ]
    if not worth:
        return None
    # The longest first; of equals by key, so that the answer does not depend on the order of asking.
    return min(worth, key=lambda one: (-remaining_s(one, rule), one.unit_key)).unit_key
