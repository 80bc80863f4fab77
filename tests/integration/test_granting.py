"""What hosts are given beside open work, tests and copies of what is late, and what they are not given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, update

from memgrid.clock import ManualClock
from memgrid.digest import digest_of
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu, SimulatedHost
from memgrid.units import ReasonCode, Wishes
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.store import events
from memgrid_coordinator.store.tables import hosts as hosts_table
from tests.grids import eventually, push_model, run_until_ended, running_coordinator, simulated_hosts, submit, work_on

TEXT = "The valve opens at three bar."
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def grid_with(
    tmp_path: Path, model: Path, count: int, *, clock: ManualClock | None = None, **changed: object
) -> AsyncIterator[tuple[Coordinator, list[SimulatedHost]]]:
    async with AsyncExitStack() as stack:
        coordinator, endpoint = await stack.enter_async_context(running_coordinator(tmp_path, clock=clock, **changed))
        await push_model(coordinator, model)
        yield coordinator, await stack.enter_async_context(simulated_hosts(endpoint, count))


async def test_a_canary_looks_like_work_and_finds_the_cheat(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    async with grid_with(tmp_path, tiny_model_folder, 4, canary_share=1.0) as (coordinator, hosts):
        *quorum, honest, cheat = hosts
        submission = await submit(coordinator, {"manual.txt": TEXT})
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in quorum})
        for host, gpu, verdict in (
            (honest, SimulatedGpu(geometry, noise=1e-5), "accepted"),
            (cheat, SimulatedGpu(geometry, bias=0.5), "rejected"),
        ):
            (offer,) = (await host.sync(want=1)).leases
            await host.sync(work=[await work_on(coordinator, gpu, offer)])

            async def told(host: SimulatedHost = host, lease_id: str = offer.lease_id) -> object:
                return (await host.sync(awaiting=[lease_id])).verdicts  # type: ignore[list-item]

            (notice,) = await eventually(told)
            assert notice.verdict == verdict
        story = await coordinator.store.read(lambda connection: events.of_host(connection, cheat.host_id))
        assert "host_at_fault" in [event.name for event in story]


async def test_whoever_has_a_part_in_a_unit_gets_no_canary_of_it(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    async with grid_with(tmp_path, tiny_model_folder, 2, canary_share=1.0) as (coordinator, hosts):
        submission = await submit(coordinator, {"manual.txt": TEXT})
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
        answer = await hosts[0].sync(want=1)
        assert not answer.leases
        assert answer.idle_reason is not None and answer.idle_reason.code is ReasonCode.NO_WORK


async def test_an_idle_host_computes_what_is_late_too(tmp_path: Path, tiny_model_folder: Path) -> None:
    clock = ManualClock(NOW)
    async with grid_with(tmp_path, tiny_model_folder, 2, clock=clock) as (coordinator, hosts):
        slow, idle = hosts
        await submit(coordinator, {"manual.txt": TEXT}, trust={"min_replicas": 1})
        (offer,) = (await slow.sync(want=1)).leases
        assert not (await idle.sync(want=1)).leases, "it has only just begun"
        clock.advance(timedelta(seconds=40))
        (copy,) = (await idle.sync(want=1)).leases
        assert copy.unit_key == offer.unit_key and copy.fence > offer.fence
        assert not (await idle.sync(want=1, held=[copy])).leases, "one copy is enough"
        assert not (await slow.sync(held=[offer])).cancelled, "whoever is first is taken"


async def test_two_of_one_network_do_not_confirm_each_other(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with grid_with(tmp_path, tiny_model_folder, 3) as (coordinator, hosts):
        networks = ("93.184.216.0/24", "93.184.216.0/24", "151.101.1.0/24")

        def move(connection: Connection) -> None:
            for host, network in zip(hosts, networks, strict=True):
                connection.execute(
                    update(hosts_table).where(hosts_table.c.host_id == host.host_id).values(network=network)
                )

        await coordinator.store.write(move)
        await submit(coordinator, {"manual.txt": TEXT})
        first, neighbour, stranger = hosts
        (offer,) = (await first.sync(want=1)).leases
        answer = await neighbour.sync(want=1)
        assert not answer.leases and answer.idle_reason is not None
        assert answer.idle_reason.code is ReasonCode.ALL_SEEN
        (other,) = (await stranger.sync(want=1)).leases
        assert other.unit_key == offer.unit_key


async def test_a_new_account_holds_little(tmp_path: Path, tiny_model_folder: Path) -> None:
    """However many hosts somebody enrols under one key."""
    async with grid_with(tmp_path, tiny_model_folder, 1, trust_held_at_first=2) as (
        coordinator,
        hosts,
    ):
        independent = {"layout": "independent", "chunk_tokens": 16}
        await submit(coordinator, {"manual.txt": TEXT * 40}, activation=independent)
        (host,) = hosts
        twin = SimulatedHost(endpoint=host.endpoint, key=host.key, label="twin")
        await twin.enrol()
        try:
            (held,) = (await host.sync(want=1)).leases
            answer = await twin.sync(want=8)
            assert len(answer.leases) == 1
            assert answer.idle_reason is not None and answer.idle_reason.code is ReasonCode.QUOTA_REACHED
            assert "none of its results was checked yet" in answer.idle_reason.text
            assert not (await host.sync(want=1, held=[held])).leases
        finally:
            await twin.close()


async def test_a_host_is_told_that_nothing_open_is_what_its_owner_wishes(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    async with grid_with(tmp_path, tiny_model_folder, 1) as (coordinator, hosts):
        await submit(coordinator, {"manual.txt": TEXT})
        (host,) = hosts
        answer = await host.sync(want=1, wishes=Wishes(kinds=frozenset({"train"})))
        assert not answer.leases and answer.idle_reason is not None
        assert answer.idle_reason.code is ReasonCode.NOT_WISHED
        answer = await host.sync(want=1, wishes=Wishes(avoided_campaigns=frozenset({"handbook"})))
        assert not answer.leases
        at_hand = Wishes(campaigns=frozenset({"handbook"}), cached_models=frozenset({digest_of(b"another model")}))
        assert len((await host.sync(want=1, wishes=at_hand)).leases) == 1
