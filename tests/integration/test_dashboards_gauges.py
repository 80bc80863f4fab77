"""What the gauges are read from, on every database: counts, sums that are larger than a word, and nothing twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from memgrid_coordinator.lifecycle import CampaignState, DocumentState, LeaseState, UnitState
from memgrid_coordinator.metrics import UNIT_KINDS
from memgrid_coordinator.store import campaign_gauges, gauges
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.tables import (
    accounts,
    campaigns,
    document_units,
    documents,
    hosts,
    leases,
    pool_cubes,
    units,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HUGE = 4 * 10**18
"""FLOPs of one unit here: three of them are more than 64 bits hold."""


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'memgrid.db'}"
    else:
        url = request.getfixturevalue("postgres").new_database()
    opened = Store(url)
    await opened.write(fill)
    yield opened
    opened.close()


def fill(connection: Connection) -> None:
    """Five units, one of them shared by two campaigns, and a cube under two tags."""
    connection.execute(insert(accounts).values(account_id="a1", public_key=b"1", created_at=NOW))
    for number, seen in enumerate((0, 90, 7200)):
        connection.execute(insert(hosts).values(**a_host(number, NOW - timedelta(seconds=seen))))
    for name, state in (("first", CampaignState.RUNNING), ("second", CampaignState.COMPLETED)):
        connection.execute(insert(campaigns).values(**a_campaign(name, state)))
    states = (UnitState.ACCEPTED, UnitState.ACCEPTED, UnitState.ACCEPTED, UnitState.OPEN, UnitState.CHECKING)
    for number, state in enumerate(states, 1):
        connection.execute(insert(units).values(**a_unit(number, state)))
    for document_id, campaign, wanted in ((1, "first", (1, 2, 3, 4, 5)), (2, "second", (1,)), (3, "first", (1,))):
        connection.execute(insert(documents).values(**a_document(document_id, campaign)))
        rows = [{"document_id": document_id, "position": at, "unit_id": unit} for at, unit in enumerate(wanted)]
        connection.execute(insert(document_units), rows)
    held = (
        (1, "agreed"),
        (1, "rejected"),
        (2, "agreed"),
        (3, "agreed"),
        (4, "leased"),
        (5, "reported"),
        (5, "agreed"),
    )
    for number, (unit_id, state) in enumerate(held):
        connection.execute(insert(leases).values(**a_lease(number, unit_id, state)))
    for tag in ("1.0.0", "latest"):
        connection.execute(insert(pool_cubes).values(**a_cube(tag)))


async def test_leases_count_while_they_can_count(store: Store) -> None:
    found = await store.read(lambda connection: gauges.live_leases(connection, UNIT_KINDS))
    assert found == {"leased": 1, "reported": 1, "agreed": 1}, "those of accepted units are over"
    assert await store.read(gauges.busy_hosts) == 1


async def test_the_queue_has_what_wants_another_host(store: Store) -> None:
    queue = await store.read(gauges.queue)
    assert queue == gauges.Queue(units=1, oldest_at=NOW - timedelta(minutes=4))
    by_state = await store.read(gauges.units_by_kind_and_state)
    assert by_state == {("prefill", "accepted"): 3, ("prefill", "checking"): 1, ("prefill", "open"): 1}


async def test_hosts_are_counted_by_when_they_were_heard_of(store: Store) -> None:
    within = {"hour": timedelta(hours=1), "day": timedelta(days=1), "ever": None}
    assert await store.read(lambda connection: gauges.hosts_seen(connection, NOW, within)) == {
        "hour": 2,
        "day": 3,
        "ever": 3,
    }
    alive = await store.read(lambda connection: gauges.hosts_alive(connection, NOW - timedelta(minutes=2)))
    assert [host.flops_per_s for host in alive] == [1.0, 1.0]


async def test_content_counts_once_and_sharing_counts_what_it_saved(store: Store) -> None:
    assert await store.read(gauges.cubes_by_kind) == {
        "activation": gauges.CubeSums(
            cubes=1, payload_bytes=10, tokens=7, produced_flops=float(HUGE), gap_closed=None
        )
    }
    assert await store.read(gauges.shared) == gauges.Shared(units=1, flops=2.0 * HUGE)


async def test_a_campaign_is_summed_up_however_large_it_is(store: Store) -> None:
    found = await store.read(
        lambda connection: campaign_gauges.read(
            connection, ended_since=NOW - timedelta(hours=1), fleet=[1e18], limit=20
        )
    )
    first, second = found
    assert (first.name, second.name) == ("first", "second"), "those that run come first"
    assert first.units == {"accepted": 3, "open": 1, "checking": 1}, "a unit of two documents counts once"
    assert first.documents == {"running": 2}
    assert first.produced_flops == 3.0 * HUGE
    assert (first.done_flops, first.left_flops) == (6.0 * HUGE, 4.0 * HUGE)
    assert (first.spent_flops, first.rejected_flops) == (6.0 * HUGE, 1.0 * HUGE)
    assert first.progress == pytest.approx(0.6)
    assert first.device_s == 7.0
    assert first.eta_s == pytest.approx(4.0 * HUGE / 1e18)
    assert (second.units, second.progress) == ({"accepted": 1}, 1.0)


async def test_long_ended_campaigns_and_the_oldest_give_way(store: Store) -> None:
    def names(ended_since: datetime, limit: int) -> Any:
        return lambda connection: [
            one.name for one in campaign_gauges.read(connection, ended_since=ended_since, fleet=[], limit=limit)
        ]

    assert await store.read(names(NOW + timedelta(seconds=1), 20)) == ["first"]
    assert await store.read(names(NOW - timedelta(hours=1), 1)) == ["first"]


def a_host(number: int, seen_at: datetime) -> dict[str, Any]:
    named = {"host_id": f"h{number}", "account_id": "a1", "label": str(number), "facts": "{}", "sequence": 0}
    return {**named, "flops_per_s": 1.0, "recent_faults": 0, "created_at": NOW, "seen_at": seen_at}


def a_campaign(name: str, state: CampaignState) -> dict[str, Any]:
    ended_at = NOW if state is CampaignState.COMPLETED else None
    named = {"campaign_id": name, "request_id": name, "name": name, "recipe": "activation", "model": "m"}
    return {**named, "state": state, "spec": "{}", "priority": 0, "created_at": NOW, "ended_at": ended_at}


def a_document(document_id: int, campaign_id: str) -> dict[str, Any]:
    named = {"document_id": document_id, "campaign_id": campaign_id, "name": str(document_id)}
    source = {"source_uri": "", "source_digest": "", "licence": "", "tokens": 1}
    return {**named, **source, "state": DocumentState.RUNNING, "cube": "", "reason_text": "", "progress": ""}


def a_unit(number: int, state: UnitState) -> dict[str, Any]:
    wants = int(state is UnitState.OPEN)
    named = {"unit_id": number, "key": str(number), "kind": "prefill", "state": state, "spec": b"", "model": "m"}
    counted = {
        "token_count": 1,
        "flops": HUGE,
        "priority": 0,
        "min_replicas": 2,
        "max_replicas": 5,
        "output_bytes": 0,
    }
    rest = {"tokens_digest": "", "fence": 1, "failures": 0, "reason_text": "", "on_hold": False}
    return {**named, **counted, **rest, "vacancies": wants, "opened_at": NOW - timedelta(minutes=number)}


def a_lease(number: int, unit_id: int, state: str) -> dict[str, Any]:
    named = {"lease_id": str(number), "unit_id": unit_id, "host_id": "h0", "account_id": "a1", "fence": number}
    times = {"granted_at": NOW, "deadline_at": NOW}
    rest = {"outputs": "[]", "sketch": b"", "facts": "", "compute_s": 1.0, "reason_text": ""}
    return {**named, **times, **rest, "state": LeaseState(state)}


def a_cube(tag: str) -> dict[str, Any]:
    named = {"repository": "a/b", "tag": tag, "cube_digest": "sha256:1", "manifest_digest": "sha256:2"}
    facts = {"kind": "activation", "base": "m", "title": "t", "search_text": "", "tokens": 7, "payload_bytes": 10}
    return {**named, **facts, "licence": "", "produced_flops": HUGE, "gap_closed": None, "created_at": NOW}
