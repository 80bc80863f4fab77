"""When the reports on a unit agree, which of them stands for all, and who is the odd one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memgrid.kinds.kind import Difference
from memgrid.units import LeaseId
from memgrid_coordinator.records import ReplicaClaim

Pair = frozenset[LeaseId]
SAME = Difference(distance=0.0, exceeded=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Not settled: this many more reports are needed, or these pairs have to be compared first."""

    reports_wanted: int = 0
    compare: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """Settled: `medoid` is nearest to all that agree with it; the others are named with what they exceeded."""

    medoid: LeaseId
    agreed: tuple[LeaseId, ...]
    rejected: tuple[tuple[LeaseId, str], ...]
    largest_distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hopeless:
    """As many reports as the campaign pays for, and no majority among them."""


def settle(
    claims: Sequence[ReplicaClaim], known: Mapping[Pair, Difference], *, min_replicas: int, max_replicas: int
) -> Pending | Agreed | Hopeless:
    """Judge the reports of one unit.

    Tolerance is not transitive, so nobody is crowned for coming first: the winner is the medoid, the report with
    the most agreeing others, and among equals the one nearest to them. It needs `min_replicas` accounts on its
    side, itself included, and more than half of all reports.

    >>> settle([], {}, min_replicas=2, max_replicas=5)
    Pending(reports_wanted=2, compare=())
    """
    if len(claims) < min_replicas:
        return Pending(reports_wanted=min_replicas - len(claims))
    if unknown := uncompared(claims, known):
        return Pending(compare=unknown)
    friends = {claim.lease_id: _friends(claim, claims, known) for claim in claims}
    # Ties go by digest: whoever reports first must not decide which bytes a cube is made of.
    medoid = min(
        claims, key=lambda one: (-len(friends[one.lease_id]), _spread(one, claims, known), one.output_digest)
    )
    side = friends[medoid.lease_id]
    accounts = {claim.account_id for claim in claims if claim.lease_id in side}
    if len(accounts) < min_replicas or 2 * len(side) <= len(claims):
        return Hopeless() if len(claims) >= max_replicas else Pending(reports_wanted=1)
    return Agreed(
        medoid=medoid.lease_id,
        agreed=tuple(claim.lease_id for claim in claims if claim.lease_id in side),
        rejected=tuple(
            (claim.lease_id, difference(claim, medoid, known).exceeded or "")
            for claim in claims
            if claim.lease_id not in side
        ),
        largest_distance=max(difference(claim, medoid, known).distance for claim in claims if claim.lease_id in side),
    )


def uncompared(claims: Sequence[ReplicaClaim], known: Mapping[Pair, Difference]) -> tuple[Pair, ...]:
    """The pairs whose difference is neither known nor nought by equal digests."""
    return tuple(
        pair
        for index, one in enumerate(claims)
        for other in claims[index + 1 :]
        if one.output_digest != other.output_digest
        and (pair := frozenset((one.lease_id, other.lease_id))) not in known
    )


def difference(one: ReplicaClaim, other: ReplicaClaim, known: Mapping[Pair, Difference]) -> Difference:
    """How two reports differ; equal digests settle it without a look at the numbers."""
    if one.output_digest == other.output_digest:
        return SAME
    return known[frozenset((one.lease_id, other.lease_id))]


def _friends(claim: ReplicaClaim, claims: Sequence[ReplicaClaim], known: Mapping[Pair, Difference]) -> set[LeaseId]:
    return {other.lease_id for other in claims if difference(claim, other, known).exceeded is None}


def _spread(claim: ReplicaClaim, claims: Sequence[ReplicaClaim], known: Mapping[Pair, Difference]) -> float:
    return sum(between.distance for other in claims if (between := difference(claim, other, known)).exceeded is None)
