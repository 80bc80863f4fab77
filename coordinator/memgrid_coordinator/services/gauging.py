"""Set the gauges from what is stored, part by part, and no more often than reading it is cheap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from memgrid.clock import Clock
from memgrid.cube.manifest import CubeKind
from memgrid_coordinator.lifecycle import CampaignState, UnitState, UploadState
from memgrid_coordinator.metrics import UNIT_KINDS, Metrics, fill
from memgrid_coordinator.services.fleet import Fleet, fleet_of
from memgrid_coordinator.store import audits, campaign_gauges, campaigns, gauges, hosts, trust_records
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.campaign_gauges import CampaignGauges
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.gauges import CubeSums, Queue, Shared

ALIVE = timedelta(minutes=2)
"""A host heard of within this time is alive."""
CAMPAIGNS_MAX = 20
"""Campaigns with series of their own: the newest that have not ended, and those that ended lately."""
ENDED_LATELY = timedelta(hours=1)
_SEEN = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7), "ever": None}
_SHARE = 0.05
"""How much of a reader's time gauges may take, once reading them takes longer than this:"""
_QUICK_S = 0.5
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    units: dict[tuple[str, str], int]
    queue: Queue
    leases: dict[str, int]
    uploads: dict[str, int]
    campaigns: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volunteers:
    fleet: Fleet
    seen: dict[str, int]
    busy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commons:
    cubes: dict[str, CubeSums]
    shared: Shared


class Gauging:
    """Reads in a thread and sets where scrapes are answered: nobody sees a gauge half set."""

    def __init__(self, *, store: Store, clock: Clock, metrics: Metrics, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._due_s: dict[str, float] = {}

    async def refresh(self) -> int:
        """Read every part that is due, each in one snapshot; returns how many parts those were."""
        now = self._clock.now()
        self._metrics.disk_free_bytes.set(self._blobs.free_bytes())
        return (
            await self._part("grid", _read_grid, partial(self._set_grid, now))
            + await self._part("audits", partial(_read_audits, now=now), self._set_audits)
            + await self._part("volunteers", partial(_read_volunteers, now=now), self._set_volunteers)
            + await self._part("campaigns", partial(_read_campaigns, now=now), self._set_campaigns)
            + await self._part("commons", _read_commons, self._set_commons)
        )

    async def _part(self, name: str, read: Callable[[Connection], Value], show: Callable[[Value], None]) -> int:
        if self._clock.monotonic_s() < self._due_s.get(name, 0.0):
            return 0
        started = time.perf_counter()
        show(await self._store.read(read))
        seconds = time.perf_counter() - started
        self._metrics.gauges_read_s.labels(name).set(seconds)
        self._due_s[name] = self._clock.monotonic_s() + rest_s(seconds)
        return 1

    def _set_grid(self, now: datetime, found: _Grid) -> None:
        metrics = self._metrics
        fill(
            metrics.units,
            {(kind, state.value): found.units.get((kind, state), 0) for kind in UNIT_KINDS for state in UnitState},
        )
        fill(metrics.leases, {(state,): count for state, count in found.leases.items()})
        metrics.queue_units.set(found.queue.units)
        oldest_at = found.queue.oldest_at
        metrics.queue_age_s.set(0.0 if oldest_at is None else (now - oldest_at).total_seconds())
        fill(
            metrics.uploads,
            {(state.value,): found.uploads.get(state, 0) for state in (UploadState.ORDERED, UploadState.RECEIVED)},
        )
        fill(metrics.campaigns, {(state.value,): found.campaigns.get(state, 0) for state in CampaignState})

    def _set_audits(self, found: tuple[int, int]) -> None:
        due, suspended = found
        self._metrics.audits_due.set(due)
        self._metrics.classes_suspended.set(suspended)

    def _set_volunteers(self, found: _Volunteers) -> None:
        metrics, fleet = self._metrics, found.fleet
        metrics.hosts_alive.set(fleet.hosts)
        metrics.accounts_alive.set(fleet.accounts)
        metrics.hosts_suspended.set(fleet.suspended)
        metrics.hosts_busy.set(found.busy)
        fill(metrics.hosts_seen, {(within,): count for within, count in found.seen.items()})
        fill(metrics.devices, {(name,): count for name, count in fleet.devices.items()})
        fill(metrics.fleet_flops, {(name,): flops for name, flops in fleet.flops_per_s.items()})

    def _set_campaigns(self, found: list[CampaignGauges]) -> None:
        metrics = self._metrics
        named = [((one.name, one.campaign_id), one) for one in found]
        fill(metrics.campaign_state, {(*name, one.state.value): 1 for name, one in named})
        fill(metrics.campaign_units, _by_state((name, one.units) for name, one in named))
        fill(metrics.campaign_documents, _by_state((name, one.documents) for name, one in named))
        fill(metrics.campaign_leases, _by_state((name, one.leases) for name, one in named))
        fill(metrics.campaign_progress, {name: one.progress for name, one in named})
        fill(metrics.campaign_eta_s, {name: one.eta_s for name, one in named if one.eta_s is not None})
        fill(metrics.campaign_device_s, {name: one.device_s for name, one in named})
        flops = {
            (*name, of): value
            for name, one in named
            for of, value in (
                ("produced", one.produced_flops),
                ("spent", one.spent_flops),
                ("rejected", one.rejected_flops),
            )
        }
        fill(metrics.campaign_flops, flops)
        tokens = {
            (*name, of): value
            for name, one in named
            for of, value in (("all", one.tokens), ("accepted", one.tokens_accepted))
        }
        fill(metrics.campaign_tokens, tokens)

    def _set_commons(self, found: _Commons) -> None:
        metrics = self._metrics
        sums = {(kind.value,): found.cubes.get(kind.value, _NO_CUBES) for kind in CubeKind}
        fill(metrics.cubes, {kind: one.cubes for kind, one in sums.items()})
        fill(metrics.cube_payload_bytes, {kind: one.payload_bytes for kind, one in sums.items()})
        fill(metrics.cube_tokens, {kind: one.tokens for kind, one in sums.items()})
        fill(metrics.cube_produced_flops, {kind: one.produced_flops for kind, one in sums.items()})
        measured = {kind: one.gap_closed for kind, one in sums.items() if one.gap_closed is not None}
        fill(metrics.cube_gap_closed, measured)
        metrics.shared_units.set(found.shared.units)
        metrics.shared_flops.set(found.shared.flops)


def rest_s(reading_s: float) -> float:
    """How long to leave a part alone after a reading that took so long.

    With many units a reading takes seconds, and others need the reader more than a watcher needs it fresh.

    >>> rest_s(0.1), rest_s(2.0)
    (0.0, 40.0)
    """
    return reading_s / _SHARE if reading_s > _QUICK_S else 0.0


_NO_CUBES = CubeSums(cubes=0, payload_bytes=0, tokens=0, produced_flops=0.0, gap_closed=None)


def _by_state(
    counted: Iterable[tuple[tuple[str, str], dict[str, int]]],
) -> dict[tuple[str, ...], float]:
    return {(*name, state): count for name, counts in counted for state, count in counts.items()}


def _read_grid(connection: Connection) -> _Grid:
    return _Grid(
        units=gauges.units_by_kind_and_state(connection),
        queue=gauges.queue(connection),
        leases=gauges.live_leases(connection, UNIT_KINDS),
        uploads=gauges.awaited_uploads(connection),
        campaigns=campaigns.count_by_state(connection),
    )


def _read_audits(connection: Connection, now: datetime) -> tuple[int, int]:
    return audits.count_due(connection, now), len(trust_records.suspended(connection))


def _read_volunteers(connection: Connection, now: datetime) -> _Volunteers:
    return _Volunteers(
        fleet=fleet_of(gauges.hosts_alive(connection, now - ALIVE), now),
        seen=gauges.hosts_seen(connection, now, _SEEN),
        busy=gauges.busy_hosts(connection),
    )


def _read_campaigns(connection: Connection, now: datetime) -> list[CampaignGauges]:
    speeds = hosts.speeds_seen_since(connection, now - ALIVE)
    return campaign_gauges.read(connection, ended_since=now - ENDED_LATELY, fleet=speeds, limit=CAMPAIGNS_MAX)


def _read_commons(connection: Connection) -> _Commons:
    return _Commons(cubes=gauges.cubes_by_kind(connection), shared=gauges.shared(connection))
