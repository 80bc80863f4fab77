"""What audits have lately found in each numerics class of a simulated grid."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

from memgrid_coordinator.policy.trust import ClassRecord, TrustRule, is_class_suspended
from memgrid_coordinator.simulation.hosts import VirtualHost

_LATELY_S = 86400.0


class Classes:
    """A day's audits of each class, and which classes go unpunished."""

    def __init__(self, rule: TrustRule) -> None:
        self._rule = rule
        self._windows: defaultdict[str, _Window] = defaultdict(_Window)

    def joined(self, host: VirtualHost) -> None:
        self._windows[host.numerics_class].members[host] = None

    def hosts(self, numerics_class: str) -> list[VirtualHost]:
        return [host for host in self._windows[numerics_class].members if not host.is_gone]

    def is_suspended(self, numerics_class: str) -> bool:
        return self._windows[numerics_class].is_suspended

    def audited(self, host: VirtualHost, *, is_fault: bool, now_s: float) -> bool:
        """Take an audit into account; whether its class has just been suspended."""
        window = self._windows[host.numerics_class]
        window.add(host, is_fault, now_s)
        before, window.is_suspended = window.is_suspended, is_class_suspended(window.record, self._rule)
        return window.is_suspended and not before


class _Window:
    def __init__(self) -> None:
        self.members: dict[VirtualHost, None] = {}
        self.is_suspended = False
        self._audits: deque[tuple[float, VirtualHost, bool]] = deque()
        self._failed = 0
        self._of_host: Counter[VirtualHost] = Counter()
        self._failed_of_host: Counter[VirtualHost] = Counter()

    def add(self, host: VirtualHost, is_fault: bool, now_s: float) -> None:
        self._audits.append((now_s, host, is_fault))
        self._count(host, is_fault, 1)
        while self._audits[0][0] < now_s - _LATELY_S:
            _, old, was_fault = self._audits.popleft()
            self._count(old, was_fault, -1)

    @property
    def record(self) -> ClassRecord:
        return ClassRecord(
            audits=len(self._audits),
            failed=self._failed,
            hosts=len(self._of_host),
            hosts_failed=len(self._failed_of_host),
        )

    def _count(self, host: VirtualHost, is_fault: bool, by: int) -> None:
        _shift(self._of_host, host, by)
        if is_fault:
            self._failed += by
            _shift(self._failed_of_host, host, by)


def _shift(counts: Counter[VirtualHost], host: VirtualHost, by: int) -> None:
    counts[host] += by
    if not counts[host]:
        del counts[host]
