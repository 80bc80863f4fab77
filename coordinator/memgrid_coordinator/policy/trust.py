"""What a rejected report costs a host: after a few in a row, a rest that doubles."""

from __future__ import annotations

from datetime import datetime, timedelta

from memgrid.units import ReasonCode

FAULTS = frozenset(
    {
        ReasonCode.DISAGREES,
        ReasonCode.SKETCH_MISMATCH,
        ReasonCode.REPLAY_DIFFERS,
        ReasonCode.DIGEST_MISMATCH,
        ReasonCode.NOT_FINITE,
        ReasonCode.WRONG_SHAPE,
        ReasonCode.BAD_SKETCH,
        ReasonCode.WRONG_OUTPUTS,
    }
)
"""Reasons that speak against the host rather than its network or its owner."""
FAULTS_FORGIVEN = 2
_FIRST_REST = timedelta(minutes=10)
_LONGEST_REST = timedelta(days=1)


def rest_after(faults: int) -> timedelta | None:
    """How long a host gets no work after so many faults in a row; None while they are forgiven.

    >>> rest_after(2), rest_after(3), rest_after(4)
    (None, datetime.timedelta(seconds=600), datetime.timedelta(seconds=1200))
    """
    if faults <= FAULTS_FORGIVEN:
        return None
    doublings = min(faults - FAULTS_FORGIVEN - 1, 16)
    return min(_FIRST_REST * (1 << doublings), _LONGEST_REST)


def suspended_until(faults: int, now: datetime) -> datetime | None:
    rest = rest_after(faults)
    return None if rest is None else now + rest
