"""Set the gauges from what is stored."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid_coordinator.lifecycle import CampaignState, LeaseState, UnitState
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.store import campaigns, hosts, leases, units
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.engine import Store

ALIVE = timedelta(minutes=2)
"""A host heard of within this time is alive."""


class Gauging:
    """Counts by state, hosts alive, and how long the queue has been waiting."""

    def __init__(self, *, store: Store, clock: Clock, metrics: Metrics, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def refresh(self) -> int:
        """Read everything in one snapshot; returns how many hosts are alive."""
        now = self._clock.now()
        self._metrics.disk_free_bytes.set(self._blobs.free_bytes())
        return await self._store.read(lambda connection: self._read(connection, now))

    def _read(self, connection: Connection, now: datetime) -> int:
        units_now = units.count_by_state(connection)
        leases_now = leases.count_by_state(connection)
        campaigns_now = campaigns.count_by_state(connection)
        for unit_state in UnitState:
            self._metrics.units.labels(unit_state.value).set(units_now.get(unit_state, 0))
        for lease_state in LeaseState:
            self._metrics.leases.labels(lease_state.value).set(leases_now.get(lease_state, 0))
        for campaign_state in CampaignState:
            self._metrics.campaigns.labels(campaign_state.value).set(campaigns_now.get(campaign_state, 0))
        oldest = units.oldest_opening(connection)
        self._metrics.queue_age_s.set(0.0 if oldest is None else (now - oldest).total_seconds())
        alive = hosts.count_seen_since(connection, now - ALIVE)
        self._metrics.hosts_alive.set(alive)
        return alive
