"""Which failed documents may become cubes when they are tried again, and which would only fail again."""

from __future__ import annotations

from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.policy.life import VERDICTS_ON_THE_UNIT

_FOREGONE = VERDICTS_ON_THE_UNIT | {ReasonCode.BELOW_QUALITY, ReasonCode.BUDGET_SPENT}


def would_help(reason: Reason | None) -> bool:
    """Whether trying again can end otherwise: not where everything that led there is kept and would be found again.

    >>> would_help(Reason(code=ReasonCode.TOO_MANY_FAILURES))
    True
    >>> would_help(Reason(code=ReasonCode.BELOW_QUALITY))
    False
    """
    return reason is None or reason.code not in _FOREGONE
