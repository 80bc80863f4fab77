"""What reports are judged by: which files are ordered, until when, and what the grid's secret draws."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import Self

from memgrid.digest import canonical_json
from memgrid.signing import SigningKey
from memgrid.units import Output
from memgrid_coordinator.policy.kinds import kind_in
from memgrid_coordinator.policy.trust import Check, TrustRecord, TrustRule, check_of
from memgrid_coordinator.records import Lease, Unit
from memgrid_coordinator.settings import Settings

_PURPOSE = b"memgrid draw v1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingRule:
    """How results are ordered and checked; `secret` is the grid's alone."""

    shortest: timedelta
    slowest_bytes_per_s: int
    secret: bytes
    trust: TrustRule
    has_arbiter: bool
    """Whether this coordinator decides between two reports that differ: it may, and has what that takes."""

    @classmethod
    def of(cls, settings: Settings, grid_key: SigningKey) -> Self:
        """The rule of a grid; another secret would draw otherwise after a restart, so it follows from the key."""
        return cls(
            shortest=settings.upload_shortest,
            slowest_bytes_per_s=settings.upload_slowest_bytes_per_s,
            secret=hashlib.sha256(_PURPOSE + grid_key.private.private_bytes_raw()).digest(),
            trust=settings.trust,
            has_arbiter=settings.arbiter and find_spec("torch") is not None,
        )

    def due_at(self, size_bytes: int, now: datetime) -> datetime:
        return now + max(self.shortest, timedelta(seconds=size_bytes / self.slowest_bytes_per_s))

    def check(self, lease: Lease, unit: Unit, record: TrustRecord, *, is_class_suspended: bool) -> Check:
        """Whether a report is audited, and whether somebody else computes its unit too."""
        trust = self.trust.at_least(unit.epsilon, unit.f_bar)
        return check_of(record, trust, self._drawn(lease, "check"), is_class_suspended=is_class_suspended)

    def draw(self, lease: Lease, number: int = 0) -> bytes:
        """What is replayed of a result, in its first audit and in later ones."""
        return self._drawn(lease, number)

    def _drawn(self, lease: Lease, purpose: str | int) -> bytes:
        """32 bytes that nobody could know before the report was on disk, and that are the same ever after."""
        assert lease.outputs, f"lease {lease.lease_id} has not been reported"
        reported = [[output.name, output.digest, output.size_bytes] for output in lease.outputs]
        return hmac.digest(self.secret, canonical_json([lease.lease_id, reported, purpose]), "sha256")

    def wanted(self, spec: bytes, lease: Lease) -> Sequence[Output]:
        """The files to fetch, the main output first."""
        parsed, kind = kind_in(spec)
        return kind.wanted(parsed, lease.outputs, self.draw(lease), lease.disputed)
