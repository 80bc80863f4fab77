"""Leases that have ended, that are others', or that were never given."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from memgrid.endpoint import GridEndpoint
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu, SimulatedHost
from memgrid.units import LeaseId, LeaseOffer, Reason, ReasonCode, Release
from memgrid_coordinator.app import Coordinator
from tests.grids import eventually, push_model, running_coordinator, simulated_hosts, submit, work_on
from tests.integration.attacks.attackers import (
    TEXT,
    TWO,
    lease_states,
    only,
    ordered,
    refused_reason,
    standing,
)

ALONE = {"min_replicas": 1, "max_replicas": 1}


async def test_stale_fencing_token_is_refused(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    """A host that slept through its deadline reports on its old lease; or says it has the newer fence.

    Each lease of a unit has a higher fence than those before, and a report names the fence of its own lease.
    """
    quick = timedelta(seconds=0.3)
    async with running_coordinator(tmp_path, lease_shortest=quick) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        await submit(coordinator, {"manual.txt": TEXT}, trust=ALONE)
        async with simulated_hosts(endpoint, 2) as (slow, fast):
            offer = only(await slow.sync(want=1))
            (newer,) = await eventually(lambda: _leases(fast))
            assert newer.unit_key == offer.unit_key and newer.fence > offer.fence
            before = await standing(coordinator)
            late = await work_on(coordinator, SimulatedGpu(geometry), offer)
            assert await refused_reason(slow, late) is ReasonCode.LEASE_EXPIRED
            guessed = replace(late, claim=replace(late.claim, fence=newer.fence))
            assert await refused_reason(slow, guessed) is ReasonCode.STALE_FENCE
            assert await standing(coordinator) == before
            assert (await lease_states(coordinator, offer.lease_id))[0] == "expired"


async def _leases(host: SimulatedHost) -> tuple[LeaseOffer, ...]:
    return (await host.sync(want=1)).leases


async def test_another_s_lease_is_not_mine(grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry) -> None:
    """The attacker knows another host's lease: to report it, give it back, hold it, learn its verdict.

    A lease belongs to one host, in whatever call it is named.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
    async with simulated_hosts(endpoint, 2) as (owner, thief):
        offer = only(await owner.sync(want=1))
        before = await standing(coordinator)
        work = await work_on(coordinator, SimulatedGpu(geometry), offer)
        assert await refused_reason(thief, work) is ReasonCode.NOT_YOUR_LEASE
        mine = replace(work, claim=replace(work.claim, lease_id=LeaseId("f" * 32)))
        assert await refused_reason(thief, mine) is ReasonCode.UNKNOWN_LEASE
        left = Reason(code=ReasonCode.UNIT_FAILED, text="")
        release = Release(lease_id=offer.lease_id, fence=offer.fence, reason=left)
        told = await thief.sync(released=[release], held=[offer], awaiting=[offer.lease_id])
        assert [gone.reason.code for gone in told.cancelled] == [ReasonCode.UNKNOWN_LEASE] and told.leases == ()
        assert all(offer.lease_id not in notice.reason.text for notice in told.verdicts)
        assert await standing(coordinator) == before
        assert (await lease_states(coordinator, offer.lease_id))[0] == "leased"
        assert (await owner.sync(held=[offer])).cancelled == (), "its owner notices nothing"


async def test_another_s_upload_is_not_mine(grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry) -> None:
    """The attacker uploads to another's order, with a token of his own: other bytes, or the true ones to be paid.

    An order is one host's; whoever else comes is turned away before a byte is read.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
    gpu = SimulatedGpu(geometry)
    async with simulated_hosts(endpoint, 3) as (*pair, thief):
        _, order, work = await ordered(coordinator, pair, lambda offer: work_on(coordinator, gpu, offer))
        before = await standing(coordinator)
        for content in (work.content, b"x" * len(work.content)):
            answer = await thief.upload(order, content)
            assert (answer.status_code, answer.json()["errors"][0]["detail"]["reason"]) == (403, "not_ordered")
        assert await standing(coordinator) == before


async def test_a_copied_digest_is_worth_nothing_without_the_bytes(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """A colluder tells another what he reported; the other reports the same and has computed nothing.

    Whoever is asked to upload must have the very bytes: others are turned away, and nobody is paid before they are
    here. That two colluders agree with each other is for diversity and audits to stop.
    """
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
    gpu = SimulatedGpu(geometry)
    async with simulated_hosts(endpoint, 2) as pair:
        host, order, work = await ordered(coordinator, pair, lambda offer: work_on(coordinator, gpu, offer))
        before = await standing(coordinator)
        answer = await host.upload(order, bytes(len(work.content)))
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["detail"]["reason"] == "digest_mismatch"
        assert await standing(coordinator) == before
        assert before.credit_lines == 0
