"""Honest work is credited when the grid ended its lease: the campaign was cancelled, or somebody was faster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from memgrid.clock import ManualClock
from memgrid.endpoint import GridEndpoint
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu, SimulatedHost, SimulatedWork
from memgrid.units import LeaseOffer, ReasonCode, VerdictNotice
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.policy.trust import TrustRecord, TrustRule
from memgrid_coordinator.store import credits, hosts, trust_records, units
from tests.grids import (
    OPERATOR,
    eventually,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
    work_on,
)

TEXT = "The valve opens at three bar."
Grid = tuple[Coordinator, GridEndpoint]


async def verdict_on(host: SimulatedHost, offer: LeaseOffer) -> VerdictNotice:
    async def told() -> VerdictNotice | None:
        verdicts = (await host.sync(awaiting=[offer.lease_id])).verdicts
        return verdicts[0] if verdicts else None

    verdict: VerdictNotice = await eventually(told)
    return verdict


async def credit_of(coordinator: Coordinator, host: SimulatedHost) -> int:
    def query(connection: Connection) -> int:
        known = hosts.get_host(connection, host.host_id)
        assert known is not None
        return credits.total(connection, known.account_id)

    return await coordinator.store.read(query)


async def flops_of(coordinator: Coordinator, offer: LeaseOffer) -> int:
    found = await coordinator.store.read(lambda connection: units.by_key(connection, [offer.unit_key]))
    return found[offer.unit_key].flops


async def held_and_cancelled(
    coordinator: Coordinator,
    holders: list[SimulatedHost],
    gpus: list[SimulatedGpu],
    *,
    request_id: str = "request-1",
) -> list[tuple[LeaseOffer, SimulatedWork]]:
    """Every host has finished a unit of a campaign that is cancelled before it can report."""
    trust = {"min_replicas": len(holders), "max_replicas": 5}
    submission = await submit(coordinator, {"manual.txt": TEXT}, request_id=request_id, trust=trust)
    offers = [(await host.sync(want=1)).leases[0] for host in holders]
    done = [(offer, await work_on(coordinator, gpu, offer)) for offer, gpu in zip(offers, gpus, strict=True)]
    await coordinator.campaigns.cancel(OPERATOR, submission.campaign.campaign_id)
    return done


async def test_reports_on_a_cancelled_campaign_confirm_each_other(grid: Grid, geometry: ModelGeometry) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 3) as three:
        gpus = [SimulatedGpu(geometry, noise=1e-5, seed=seed) for seed in (1, 2)]
        gpus.append(SimulatedGpu(geometry, bias=0.04))
        done = await held_and_cancelled(coordinator, three, gpus)
        # A newcomer alone is not believed; the second report settles it for both, and against the third.
        for host, (offer, work) in zip(three, done, strict=True):
            answer = await host.sync(held=[offer], work=[work])
            assert answer.acks[0].accepted, answer.acks
        cheat = await verdict_on(three[2], done[2][0])
        assert (cheat.verdict, cheat.reason.code) == ("rejected", ReasonCode.DISAGREES)
        flops = await flops_of(coordinator, done[0][0])
        for host, (offer, _) in zip(three[:2], done[:2], strict=True):
            told = await verdict_on(host, offer)
            assert (told.verdict, told.credit_flops) == ("accepted", flops)
        earned = [await credit_of(coordinator, host) for host in three]
        assert earned == [flops, flops, 0]


def let_be_known(connection: Connection, host: SimulatedHost, work: SimulatedWork) -> None:
    """As if the host had passed its probation."""
    known = hosts.get_host(connection, host.host_id)
    assert known is not None
    numerics_class = f"{work.claim.facts.numerics_class} in {work.claim.facts.compute_dtype}"
    past = TrustRecord(results=5, passed=TrustRule().probation_results)
    trust_records.put(connection, known, "prefill", numerics_class, past, datetime(2026, 1, 1, tzinfo=UTC))


async def test_a_newcomer_alone_is_told_why_it_gets_nothing_and_one_past_probation_is_believed(
    grid: Grid, geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 1) as (host,):
        gpu = SimulatedGpu(geometry)
        ((offer, work),) = await held_and_cancelled(coordinator, [host], [gpu])
        await host.sync(held=[offer], work=[work])
        told = await verdict_on(host, offer)
        assert (told.verdict, told.reason.code) == ("cancelled", ReasonCode.UNIT_SETTLED)
        assert "too new" in told.reason.text
        # The unit is wanted again: whoever reported it in vain may take it, and is believed once it has a name.
        await coordinator.store.write(lambda connection: let_be_known(connection, host, work))
        ((again, work),) = await held_and_cancelled(coordinator, [host], [gpu], request_id="request-2")
        assert again.unit_key == offer.unit_key
        await host.sync(held=[again], work=[work])
        assert (await verdict_on(host, again)).verdict == "accepted"
        assert await credit_of(coordinator, host) == await flops_of(coordinator, offer)
        # And a third time: credited work is let go, so that one account is never what a unit waits for.
        ((third, _),) = await held_and_cancelled(coordinator, [host], [gpu], request_id="request-3")
        assert third.unit_key == offer.unit_key
        assert (await verdict_on(host, again)).verdict == "accepted", "what was credited stays so"


async def test_who_was_slower_is_paid_the_same(grid: Grid, geometry: ModelGeometry) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"manual.txt": TEXT}, trust={"min_replicas": 2})
    async with simulated_hosts(endpoint, 3) as (slow, *quick):
        (offer,) = (await slow.sync(want=1)).leases
        work = await work_on(coordinator, SimulatedGpu(geometry, noise=1e-5), offer)
        # Its lease runs long; two others, let in beside it, settle the unit.
        await coordinator.store.write(lambda connection: units.set_vacancies(connection, {1: 2}))
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in quick})
        told = await slow.sync(held=[offer])
        assert [one.reason.code for one in told.cancelled] == [ReasonCode.UNIT_SETTLED]
        await slow.sync(work=[work])
        assert (await verdict_on(slow, offer)).verdict == "accepted"
        earned = {await credit_of(coordinator, host) for host in (slow, *quick)}
        assert earned == {await flops_of(coordinator, offer)}


async def test_after_its_deadline_a_lease_is_over(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with running_coordinator(tmp_path / "data", clock=clock) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        async with simulated_hosts(endpoint, 1) as (host,):
            ((offer, work),) = await held_and_cancelled(coordinator, [host], [SimulatedGpu(geometry)])
            clock.advance(offer.deadline_at - clock.now() + timedelta(seconds=1))
            (ack,) = (await host.sync(work=[work])).acks
            assert not ack.accepted
            assert ack.reason is not None and ack.reason.code is ReasonCode.LEASE_ENDED


async def test_a_batch_of_late_reports_is_taken_at_once(grid: Grid, geometry: ModelGeometry) -> None:
    coordinator, endpoint = grid
    texts = {"one.txt": TEXT, "other.txt": "It closes at two."}
    submission = await submit(coordinator, texts)
    async with simulated_hosts(endpoint, 1) as (host,):
        offers = (await host.sync(want=2)).leases
        assert len(offers) == 2
        work = [await work_on(coordinator, SimulatedGpu(geometry), offer) for offer in offers]
        await coordinator.campaigns.cancel(OPERATOR, submission.campaign.campaign_id)
        assert [ack.accepted for ack in (await host.sync(work=work)).acks] == [True, True]
