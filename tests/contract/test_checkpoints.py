"""What the store promises about half-done units that hosts left for others of their account."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, update

from memgrid.digest import digest_of
from memgrid.units import AccountId, HostId, LeaseId
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.records import Checkpoint
from memgrid_coordinator.store import campaigns, checkpoints
from memgrid_coordinator.store.engine import Store
from memgrid_coordinator.store.tables import units
from tests.contract.test_stages import add_host, lease_of, new_campaign, new_unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINE, THEIRS = AccountId("a"), AccountId("b")


def add_leases(connection: Connection) -> int:
    """Four leases of one unit, one after the other, by the host `h`; returns the unit."""
    add_host(connection)
    document_id = new_campaign(connection, "c", (new_unit("u"),))
    (unit_id,) = campaigns.units_of(connection, document_id)
    for number in range(1, 5):
        lease_of(connection, unit_id, number)
    return unit_id


@pytest.fixture
async def unit_id(empty_store: Store) -> int:
    return await empty_store.write(add_leases)


def left(number: int, unit_id: int, account_id: AccountId = MINE) -> Checkpoint:
    """What is ordered of the lease with that number, until an hour from now."""
    return Checkpoint(
        lease_id=LeaseId(f"lease{number}"),
        unit_id=unit_id,
        host_id=HostId("h"),
        account_id=account_id,
        fence=number,
        digest=digest_of(str(number).encode()),
        size_bytes=10 * number,
        progress=0.125 * number,
        received_at=None,
        ends_at=NOW + HOUR,
    )


async def test_an_order_is_received_once_and_only_by_its_own_bytes(empty_store: Store, unit_id: int) -> None:
    ordered = left(1, unit_id)

    def step(connection: Connection) -> list[object]:
        checkpoints.order(connection, ordered)
        told: list[object] = [checkpoints.get(connection, ordered.lease_id)]
        told.append(checkpoints.newest(connection, [unit_id], MINE, NOW))
        other = replace(ordered, digest=digest_of(b"other"))
        told += [checkpoints.receive(connection, one, NOW, NOW + 2 * HOUR) for one in (other, ordered, ordered)]
        return told

    assert await empty_store.write(step) == [ordered, {}, False, True, False]
    here = replace(ordered, received_at=NOW, ends_at=NOW + 2 * HOUR)
    assert await empty_store.read(lambda connection: checkpoints.get(connection, ordered.lease_id)) == here


async def test_the_newest_of_an_account_is_the_one_that_counts(empty_store: Store, unit_id: int) -> None:
    def arrive(connection: Connection, *arriving: Checkpoint) -> None:
        for one in arriving:
            checkpoints.order(connection, one)
            assert checkpoints.receive(connection, one, NOW, NOW + HOUR)

    def newest(connection: Connection, account_id: AccountId, now: datetime = NOW) -> list[tuple[int, int]]:
        found = checkpoints.newest(connection, [unit_id, 77], account_id, now)
        return [(unit, one.fence) for unit, one in found.items()]

    # The first was slow: it comes after the third, and is none the newer for that.
    late = left(3, unit_id), left(1, unit_id), left(2, unit_id, THEIRS)
    await empty_store.write(lambda connection: arrive(connection, *late))
    assert await empty_store.read(lambda connection: newest(connection, MINE)) == [(unit_id, 3)]
    assert await empty_store.read(lambda connection: newest(connection, THEIRS)) == [(unit_id, 2)]
    assert await empty_store.read(lambda connection: newest(connection, AccountId("c"))) == []
    assert await empty_store.read(lambda connection: newest(connection, MINE, NOW + HOUR)) == [], "it has ended"
    assert await empty_store.read(lambda connection: checkpoints.newest(connection, [], MINE, NOW)) == {}
    sizes = await empty_store.read(lambda connection: checkpoints.sizes(connection, MINE, LeaseId("lease1")))
    assert sizes == (30, 50)

    await empty_store.write(lambda connection: arrive(connection, left(4, unit_id)))
    named = await empty_store.read(checkpoints.named)
    assert named == {digest_of(b"2"), digest_of(b"4")}, "those before it take no room any more"
    await empty_store.write(lambda connection: checkpoints.forget(connection, unit_id, MINE))
    assert await empty_store.read(checkpoints.named) == {digest_of(b"2")}


async def test_an_order_takes_the_place_of_the_former_of_its_lease(empty_store: Store, unit_id: int) -> None:
    further = replace(left(1, unit_id), digest=digest_of(b"further"), size_bytes=70, progress=0.5)

    def step(connection: Connection) -> Checkpoint | None:
        checkpoints.order(connection, left(1, unit_id))
        checkpoints.order(connection, further)
        return checkpoints.get(connection, further.lease_id)

    assert await empty_store.write(step) == further
    assert await empty_store.read(checkpoints.named) == {further.digest}


@pytest.mark.parametrize("state", [UnitState.PROVISIONAL, UnitState.ACCEPTED, UnitState.FAILED, UnitState.CANCELLED])
async def test_what_nobody_needs_any_more_is_forgotten(state: UnitState, empty_store: Store, unit_id: int) -> None:
    await empty_store.write(lambda connection: checkpoints.order(connection, left(1, unit_id)))

    def forgotten(connection: Connection, now: datetime) -> tuple[bool, bool]:
        before = checkpoints.any_ended(connection, now)
        checkpoints.forget_ended(connection, now)
        return before, not checkpoints.named(connection)

    assert await empty_store.write(lambda connection: forgotten(connection, NOW)) == (False, False)

    def end(connection: Connection) -> None:
        connection.execute(update(units).where(units.c.unit_id == unit_id).values(state=state))

    await empty_store.write(end)
    assert await empty_store.write(lambda connection: forgotten(connection, NOW)) == (True, True)


async def test_what_did_not_come_in_time_is_forgotten(empty_store: Store, unit_id: int) -> None:
    await empty_store.write(lambda connection: checkpoints.order(connection, left(1, unit_id)))
    await empty_store.write(lambda connection: checkpoints.forget_ended(connection, NOW + HOUR))
    assert await empty_store.read(checkpoints.named) == frozenset()
