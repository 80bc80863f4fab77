"""Content from a host that is turned down, with the typed reason."""

from __future__ import annotations

from memgrid.errors import InvalidError
from memgrid.units import Reason, ReasonCode


class RefusedError(InvalidError):
    """What a host sent is not what its unit asks for.

    >>> raise RefusedError(ReasonCode.WRONG_SHAPE, "l0.k: expected [3, 256, 64], found [3, 255, 64]")
    Traceback (most recent call last):
    ...
    memgrid.kinds.refusal.RefusedError: l0.k: expected [3, 256, 64], found [3, 255, 64]
    """

    def __init__(self, reason_code: ReasonCode, text: str) -> None:
        super().__init__(text)
        self.reason = Reason(code=reason_code, text=str(self))

    def __reduce__(self) -> tuple[type[RefusedError], tuple[ReasonCode, str]]:
        # Checks run in other processes: the reason has to survive the way back.
        return RefusedError, (self.reason.code, self.reason.text)
