"""Whether the grid takes what a host did of a unit that it gives back, for other hosts of the same account."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from memgrid.units import CheckpointRef, ReasonCode
from memgrid_coordinator.lifecycle import LeaseState
from memgrid_coordinator.records import Checkpoint, Lease

_OF_A_WILL = frozenset({ReasonCode.OWNER_PAUSED, ReasonCode.LEAVING})
"""Its owner wants the machine: nothing went wrong with the unit, or the device."""
_SHARE_OF_AN_ACCOUNT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TravelRule:
    """How much is kept, and how long."""

    each_bytes_max: int
    all_bytes_max: int
    keep: timedelta

    @property
    def account_bytes_max(self) -> int:
        """Of all hosts of an account."""
        return self.all_bytes_max // _SHARE_OF_AN_ACCOUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What speaks for and against a checkpoint, beside itself."""

    unit_bytes_max: int
    """More than any of its unit takes."""
    kept: Checkpoint | None
    """The newest that is here of the same unit and account."""
    account_bytes: int
    all_bytes: int
    """Here or ordered."""


def is_given_back(lease: Lease) -> bool:
    """Whether a host may leave what it did under this lease."""
    return lease.state is LeaseState.RELEASED and lease.reason is not None and lease.reason.code in _OF_A_WILL


def is_wanted(offered: CheckpointRef, granted_at: datetime, around: Circumstances, rule: TravelRule) -> bool:
    """Whether to order it: it fits its unit and what there is room for, and is news.

    One that is less far than what is kept is news only from a host that was told of that one, `granted_at` being
    when, and so did not go on from it: then what is kept is none.

    >>> rule = TravelRule(each_bytes_max=100, all_bytes_max=1000, keep=timedelta(hours=1))
    >>> around = Circumstances(unit_bytes_max=50, kept=None, account_bytes=0, all_bytes=0)
    >>> from datetime import UTC; from memgrid.digest import digest_of
    >>> small = CheckpointRef(digest=digest_of(b"x"), size_bytes=40, progress=0.5)
    >>> large = CheckpointRef(digest=digest_of(b"y"), size_bytes=60, progress=0.5)
    >>> now = datetime(2026, 1, 1, tzinfo=UTC)
    >>> is_wanted(small, now, around, rule), is_wanted(large, now, around, rule)
    (True, False)
    """
    size_bytes = offered.size_bytes
    if not 0 < size_bytes <= min(around.unit_bytes_max, rule.each_bytes_max) or offered.progress <= 0:
        return False
    if (
        around.account_bytes + size_bytes > rule.account_bytes_max
        or around.all_bytes + size_bytes > rule.all_bytes_max
    ):
        return False
    kept = around.kept
    if kept is None or kept.received_at is None or offered.progress > kept.progress:
        return True
    return granted_at >= kept.received_at and offered.digest != kept.digest
