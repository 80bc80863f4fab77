"""Return units to the queue when a lease of theirs runs out."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.log import get_logger
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.policy.life import Changed
from memgrid_coordinator.records import Event, Lease
from memgrid_coordinator.services.judging import Judging
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.settling import Settlement, settle
from memgrid_coordinator.store import events, leases, units
from memgrid_coordinator.store.engine import Store

log = get_logger(__name__)
EXPIRED_AT_ONCE = 500


class Expiring:
    """Ends leases that ran out, a bounded number at a time."""

    def __init__(self, *, store: Store, clock: Clock, metrics: Metrics, judging: Judging, rule: JudgingRule) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._judging = judging
        self._rule = rule

    async def expire_due(self) -> int:
        """End what is due now; returns how many leases that were."""
        now = self._clock.now()
        if not await self._store.read(lambda connection: leases.due(connection, now, 1)):
            return 0
        ended, settlement = await self._store.write(lambda connection: self._step(connection, now))
        for lease in ended:
            log.info("lease expired", lease_id=lease.lease_id, host_id=lease.host_id, unit_key=lease.unit_key)
        self._metrics.releases.labels(ReasonCode.LEASE_EXPIRED.value).inc(len(ended))
        self._judging.announce(settlement)
        return len(ended)

    def _step(self, connection: Connection, now: datetime) -> tuple[list[Lease], Settlement]:
        due = leases.due(connection, now, EXPIRED_AT_ONCE)
        leases.move(connection, [lease.lease_id for lease in due], "expire", _RAN_OUT)
        units.count_failures(connection, [lease.unit_id for lease in due])
        events.append(connection, [_event(lease, now) for lease in due])
        changed = dict.fromkeys([lease.unit_id for lease in due], Changed())
        return due, settle(connection, changed, known={}, rule=self._rule, now=now)


_RAN_OUT = Reason(code=ReasonCode.LEASE_EXPIRED, text="no report came before the deadline")


def _event(lease: Lease, now: datetime) -> Event:
    return Event(at=now, name="lease_expired", unit_id=lease.unit_id, lease_id=lease.lease_id, host_id=lease.host_id)
