"""The control plane, over real gRPC and HTTP: a unit's whole life, and everything a stranger may try."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from memgrid.digest import Digest, digest_of
from memgrid.endpoint import GridEndpoint
from memgrid.errors import BadSignatureError, NotAllowedError, SessionReplacedError, StaleSequenceError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.sketch import SKETCH_FORMAT
from memgrid.signing import SigningKey
from memgrid.testing import SimulatedGpu, SimulatedHost, SimulatedWork
from memgrid.units import LeaseId, LeaseOffer, Reason, ReasonCode, Release, SyncAsk, UploadOrder
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.store import credits, leases, units
from tests.grids import (
    OPERATOR,
    campaign_of,
    eventually,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
    work_on,
)

TEXT = "The valve opens at three bar and closes at two. " * 8


async def test_a_campaign_becomes_a_cube_and_everybody_is_paid(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 2) as hosts:
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
    campaign = await campaign_of(coordinator, submission)
    assert campaign.state is CampaignState.COMPLETED
    assert [document.cube for document in campaign.documents] == ["handbook/manual:1.0.0"]
    assert campaign.reports_by_verdict == {"agreed": 2 * sum(campaign.units_by_state.values())}
    paid = await coordinator.store.read(
        lambda connection: [
            credits.total(connection, account)
            for account in {
                lease.account_id for group in leases.of_units(connection, range(1, 99)).values() for lease in group
            }
        ]
    )
    assert paid == [campaign.produced_flops, campaign.produced_flops]
    assert campaign.spent_flops == 2 * campaign.produced_flops


async def test_a_wrong_model_is_caught_and_the_cube_is_made_of_the_others(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 3) as hosts:
        gpus = [SimulatedGpu(geometry, noise=1e-5, seed=1), SimulatedGpu(geometry, noise=1e-5, seed=2)]
        gpus.append(SimulatedGpu(geometry, bias=0.04))
        assert (await hosts[2].sync(want=1)).leases, "the cheat has its hands in before the others begin"
        await run_until_ended(coordinator, submission, dict(zip(hosts, gpus, strict=True)))
        cheat = hosts[2].host_id
    campaign = await campaign_of(coordinator, submission)
    assert campaign.state is CampaignState.COMPLETED
    every = await coordinator.store.read(lambda connection: leases.of_units(connection, range(1, 99)))
    rejected = {lease.host_id for group in every.values() for lease in group if lease.state == "rejected"}
    assert rejected == {cheat}
    reasons = [lease.reason for group in every.values() for lease in group if lease.state == "rejected"]
    assert all(reason is not None and "allowed" in reason.text for reason in reasons)


async def test_the_same_text_is_computed_once_for_two_campaigns(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    first = await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 2) as hosts:
        gpus = {host: SimulatedGpu(geometry) for host in hosts}
        await run_until_ended(coordinator, first, gpus)
        again = await submit(coordinator, {"copy.txt": TEXT}, request_id="request-2", name="again")
        assert again.units_reused == sum(again.campaign.units_by_state.values()) > 0
        await run_until_ended(coordinator, again, gpus)
    one, two = await campaign_of(coordinator, first), await campaign_of(coordinator, again)
    assert two.state is CampaignState.COMPLETED
    assert one.reports_by_verdict == two.reports_by_verdict, "nobody computed anything for the second"


async def test_a_lost_answer_is_given_again(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, endpoint = grid
    await submit(
        coordinator, {"manual.txt": TEXT}, activation={"layout": "independent", "chunk_tokens": 32, "wrap": "plain"}
    )
    async with simulated_hosts(endpoint, 1) as (host,):
        first = await host.sync(want=2)
        again = await host.sync(want=2)
        assert len(first.leases) == 2
        assert again.leases == first.leases


async def test_a_report_sent_twice_counts_once(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 1) as (host,):
        (offer,) = (await host.sync(want=1)).leases
        work = await work_on(coordinator, SimulatedGpu(geometry), offer)
        first = await host.sync(work=[work])
        again = await host.sync(work=[work])
        assert [ack.reason for ack in first.acks] == [None]
        assert again.acks[0].accepted
        assert again.acks[0].reason is not None
        assert again.acks[0].reason.code is ReasonCode.ALREADY_REPORTED
    every = await coordinator.store.read(lambda connection: leases.of_units(connection, [1]))
    assert [lease.state for lease in every[1]] == ["reported"]


async def refusal(host: SimulatedHost, work: SimulatedWork) -> Reason:
    answer = await host.sync(work=[work])
    (ack,) = answer.acks
    assert not ack.accepted
    assert ack.reason is not None
    return ack.reason


async def test_reports_that_cannot_be_meant_are_refused_with_their_reason(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    await submit(
        coordinator, {"manual.txt": TEXT}, activation={"layout": "independent", "chunk_tokens": 16, "wrap": "plain"}
    )
    async with simulated_hosts(endpoint, 2) as (host, other):
        offers = list((await host.sync(want=4)).leases)
        works = [await work_on(coordinator, SimulatedGpu(geometry), offer) for offer in offers]
        good, claim = works[0], works[0].claim
        stale = replace(good, claim=replace(claim, fence=claim.fence + 1))
        assert (await refusal(host, stale)).code is ReasonCode.STALE_FENCE
        unknown = replace(good, claim=replace(claim, lease_id=LeaseId("f" * 32)))
        assert (await refusal(host, unknown)).code is ReasonCode.UNKNOWN_LEASE
        assert (await refusal(other, good)).code is ReasonCode.NOT_YOUR_LEASE
        elsewhere = replace(good, claim=replace(claim, unit_key=works[1].claim.unit_key))
        assert (await refusal(host, elsewhere)).code is ReasonCode.WRONG_UNIT
        # Those four left the lease alone; what follows ends one lease each.
        huge = replace(claim, outputs=(replace(claim.outputs[0], size_bytes=1 << 40),))
        assert (await refusal(host, replace(good, claim=huge))).code is ReasonCode.WRONG_OUTPUTS
        short = save({"k": np.zeros((1, 1, 7), np.float32), "v": np.zeros((1, 1, 7), np.float32)})
        assert (await refusal(host, with_sketch(works[1], short))).code in (
            ReasonCode.WRONG_SHAPE,
            ReasonCode.BAD_SKETCH,
        )
        shape = (geometry.layers, 1, 7)
        sick_halves = {"k": np.full(shape, np.nan, np.float32), "v": np.ones(shape, np.float32)}
        sick = save(sick_halves, metadata={"format": SKETCH_FORMAT})
        assert (await refusal(host, with_sketch(works[2], sick))).code is ReasonCode.NOT_FINITE
        unsent = replace(works[3].claim, sketch_digest=Digest("sha256:" + "0" * 64))
        assert (await refusal(host, replace(works[3], claim=unsent))).code is ReasonCode.BAD_SKETCH
        # The units go on: somebody else gets every one of them.
        again = {offer.unit_key for offer in (await other.sync(want=10)).leases}
        assert again >= {offer.unit_key for offer in offers}
        # And the host that sent four worthless reports rests.
        idle = (await host.sync(want=1)).idle_reason
        assert idle is not None
        assert idle.code is ReasonCode.HOST_SUSPENDED
    refused = coordinator.metrics.refusals.labels("report", "stale_fence")._value.get()
    assert refused == 1


def with_sketch(work: SimulatedWork, sketch: bytes) -> SimulatedWork:
    return replace(work, sketch=sketch, claim=replace(work.claim, sketch_digest=digest_of(sketch)))


async def test_an_expired_lease_goes_to_somebody_else_and_its_report_is_refused(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    quick = timedelta(seconds=0.3)
    async with running_coordinator(tmp_path, lease_shortest=quick) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        await submit(coordinator, {"manual.txt": TEXT}, trust={"min_replicas": 1, "max_replicas": 1})
        async with simulated_hosts(endpoint, 2) as (slow, fast):
            (offer,) = (await slow.sync(want=1)).leases
            taken_over = await eventually(lambda: leases_of(fast))
            assert taken_over[0].unit_key == offer.unit_key
            assert taken_over[0].fence > offer.fence
            late = await work_on(coordinator, SimulatedGpu(geometry), offer)
            assert (await refusal(slow, late)).code is ReasonCode.LEASE_EXPIRED
            told = await slow.sync(held=[offer])
            assert [one.reason.code for one in told.cancelled] == [ReasonCode.LEASE_EXPIRED]


async def leases_of(host: SimulatedHost) -> tuple[LeaseOffer, ...]:
    return (await host.sync(want=1)).leases


async def test_nobody_speaks_for_another_host(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 1) as (host,):
        (offer,) = (await host.sync(want=1)).leases
        work = await work_on(coordinator, SimulatedGpu(geometry), offer)
        host.sequence += 1
        ask = SyncAsk(
            sequence=host.sequence,
            held=(),
            awaiting=(),
            reports=(),
            sketches={work.claim.sketch_digest: work.sketch},
            released=(),
            want=0,
            wait=timedelta(0),
        )
        honest = host.signed([work.claim])
        with pytest.raises(BadSignatureError):
            await host.send(ask, replace(honest, body=honest.body + b"\x0a\x00"))
        forged = replace(honest, public_key=SigningKey.generate().public_key)
        with pytest.raises(BadSignatureError):
            await host.send(ask, forged)
        stranger = SigningKey.generate().sign(honest.type, honest.body)
        with pytest.raises(BadSignatureError):
            await host.send(ask, stranger)
        with pytest.raises(BadSignatureError, match="another sync"):
            await host.send(replace(ask, sequence=host.sequence + 1), honest)
        host.token = None
        with pytest.raises(NotAllowedError):
            await host.send(ask, honest)


async def test_a_second_log_in_ends_the_first(grid: tuple[Coordinator, GridEndpoint]) -> None:
    _, endpoint = grid
    async with simulated_hosts(endpoint, 1) as (host,):
        clone = SimulatedHost(endpoint=endpoint, key=host.key, label=host.label)
        await clone.enrol()
        assert clone.host_id == host.host_id
        with pytest.raises(SessionReplacedError):
            await host.sync()
        await clone.sync()
        clone.sequence -= 1
        await clone.sync()  # the same number again is the same call again
        clone.sequence -= 2
        with pytest.raises(StaleSequenceError):
            await clone.sync()
        await clone.close()


async def test_cancelling_withdraws_leases_and_wakes_nobody(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 1) as (host,):
        (offer,) = (await host.sync(want=1)).leases
        cancelled = await coordinator.campaigns.cancel(OPERATOR, submission.campaign.campaign_id[:8])
        assert cancelled.state is CampaignState.CANCELLED
        told = await host.sync(held=[offer], want=1)
        assert [one.reason.code for one in told.cancelled] == [ReasonCode.CAMPAIGN_CANCELLED]
        assert not told.leases
        assert told.idle_reason is not None
        assert told.idle_reason.code is ReasonCode.NO_WORK


async def test_a_long_poll_ends_when_work_comes(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, endpoint = grid
    async with simulated_hosts(endpoint, 1) as (host,):
        waiting = asyncio.create_task(host.sync(want=1, wait=timedelta(seconds=20)))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await submit(coordinator, {"manual.txt": TEXT})
        async with asyncio.timeout(5):
            assert len((await waiting).leases) == 1


async def test_a_released_lease_is_given_to_another_at_once(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust={"min_replicas": 1, "max_replicas": 1})
    async with simulated_hosts(endpoint, 2) as (owner, other):
        (offer,) = (await owner.sync(want=1)).leases
        assert not (await other.sync(want=1)).leases
        paused = Release(
            lease_id=offer.lease_id, fence=offer.fence, reason=Reason(code=ReasonCode.OWNER_PAUSED, text="game night")
        )
        await owner.sync(released=[paused])
        (taken,) = (await other.sync(want=1)).leases
        assert taken.unit_key == offer.unit_key


async def test_a_unit_that_failed_everywhere_is_tried_again(
    grid: tuple[Coordinator, GridEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT}, trust={"min_replicas": 1, "max_replicas": 1})
    async with simulated_hosts(endpoint, 1) as (host,):
        (offer,) = (await host.sync(want=1)).leases
        failed = Release(lease_id=offer.lease_id, fence=offer.fence, reason=Reason(code=ReasonCode.UNIT_FAILED))
        at_once = await host.sync(released=[failed], want=1)
        assert not at_once.leases, "others come first"
        monkeypatch.setattr(units, "RETRY_AFTER", timedelta(0))
        (again,) = (await host.sync(want=1)).leases
        assert again.unit_key == offer.unit_key


async def ordered_of(
    coordinator: Coordinator,
    host: SimulatedHost,
    other: SimulatedHost,
    gpu: SimulatedGpu,
    committed: SimulatedGpu | None = None,
) -> tuple[SimulatedWork, UploadOrder]:
    """Two hosts report the sketch of what `gpu` computes, bound to the bytes of `committed`; one is to send these."""

    async def report(one: SimulatedHost) -> SimulatedWork:
        (offer,) = (await one.sync(want=1)).leases
        seen = await work_on(coordinator, gpu, offer)
        kept = await work_on(coordinator, committed or gpu, offer)
        claim = replace(kept.claim, sketch_digest=seen.claim.sketch_digest)
        work = replace(kept, sketch=seen.sketch, claim=claim)
        await one.sync(work=[work])
        return work

    work = await report(host)
    await report(other)

    async def orders() -> tuple[UploadOrder, ...]:
        return (await host.sync()).uploads

    (order,) = await eventually(orders)
    return work, order


async def test_an_upload_nobody_ordered_is_refused(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 3) as (host, other, thief):
        work, order = await ordered_of(coordinator, host, other, SimulatedGpu(geometry))
        assert (await thief.upload(order, work.content)).status_code == 403
        assert (await host.upload(order, work.content[:-1])).status_code == 400
        assert (await host.upload(order, work.content + b"x")).status_code in (400, 413)
        assert (await host.upload(order, work.content)).status_code == 201


async def test_bytes_that_do_not_give_the_reported_sketch_are_rejected(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    """A host copies the honest sketch but committed to other bytes: the check of the upload sees it."""
    coordinator, endpoint = grid
    await submit(coordinator, {"manual.txt": TEXT})
    async with simulated_hosts(endpoint, 2) as (host, other):
        honest, biased = SimulatedGpu(geometry), SimulatedGpu(geometry, bias=0.5)
        poison, order = await ordered_of(coordinator, host, other, honest, biased)
        assert (await host.upload(order, poison.content)).status_code == 201

        async def verdict() -> object:
            return (await host.sync(awaiting=[order.lease_id])).verdicts

        (told,) = await eventually(verdict)
        assert told.verdict == "rejected"
        assert told.reason.code is ReasonCode.SKETCH_MISMATCH
