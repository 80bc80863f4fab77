"""Everybody comes back at once, over real gRPC: all get in, who works goes on, no more is worked on than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import Connection

from memgrid.channel import TICKET_KEY, open_channel
from memgrid.cli.control import control_plane
from memgrid.errors import BusyError, UnavailableError
from memgrid.testing import SimulatedHost
from memgrid.units import AccountId, HostId
from memgrid.v1 import campaigns_pb2, volunteers_pb2, volunteers_pb2_grpc
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.policy.crowd import LaneName
from memgrid_coordinator.records import Caller
from memgrid_coordinator.services.enrolment import EnrolmentService
from memgrid_coordinator.services.leasing import Leasing
from memgrid_coordinator.store import hosts
from tests.grids import eventually, running_coordinator, simulated_hosts

TINY = {"log_ins_at_once_max": 8, "syncs_at_once_max": 2, "calls_waiting_max": 8}
CROWD = 300


def enrol_all(connection: Connection, crowd: Sequence[SimulatedHost]) -> None:
    """Make hosts known as if they had enrolled before the outage."""
    now = datetime.now(UTC)
    for number, host in enumerate(crowd):
        account_id, host.host_id = AccountId(f"account-{number}"), HostId(f"host-{number}")
        hosts.add_account(connection, account_id, host.key.public_key, now)
        hosts.add_host(
            connection,
            host.host_id,
            account_id=account_id,
            label=host.label,
            facts=host.facts,
            flops_per_s=1e9,
            now=now,
        )


@asynccontextmanager
async def slow_disk(coordinator: Coordinator) -> AsyncIterator[Event]:
    """No transaction ends before the event is set, or the block ends."""
    go_on = Event()
    held = coordinator.store._writer.submit(lambda _: go_on.wait(30))
    try:
        yield go_on
    finally:
        go_on.set()
        assert await asyncio.wrap_future(held)


def series(coordinator: Coordinator, name: str, lane: LaneName) -> float | None:
    return coordinator.metrics.registry.get_sample_value(f"memgrid_{name}", {"lane": lane.value})


def waiting(coordinator: Coordinator) -> float:
    return series(coordinator, "calls_waiting", LaneName.INSIDE) or 0


def working(coordinator: Coordinator) -> float:
    return series(coordinator, "calls_working", LaneName.INSIDE) or 0


class Counted:
    """How many calls of a method are under way, and the most there ever were."""

    def __init__(self, method: Callable[..., Awaitable[Any]]) -> None:
        self.now, self.most = 0, 0
        self._method = method

    async def __call__(self, *arguments: Any) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._method(*arguments)
        finally:
            self.now -= 1


async def test_a_crowd_comes_back_while_a_host_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_ins, exchanges = Counted(EnrolmentService._log_in), 0
    monkeypatch.setattr(EnrolmentService, "_log_in", lambda self, signed, network: log_ins(self, signed, network))
    async with running_coordinator(tmp_path / "data", **TINY) as (coordinator, endpoint):
        async with simulated_hosts(endpoint, 1) as (worker,):
            channels = [open_channel(endpoint, lambda: None) for _ in range(10)]
            crowd = [SimulatedHost(endpoint=endpoint, _channel=channels[number % 10]) for number in range(CROWD)]
            await coordinator.store.write(lambda connection: enrol_all(connection, crowd))
            arriving = asyncio.gather(*(host.log_in() for host in crowd))
            while not arriving.done():
                await worker.sync()  # raises, were it turned away for good; counts how often it was for a while
                exchanges += 1
            await arriving
            assert len({host.session_id for host in crowd}) == CROWD
            assert worker.turned_away == 0
            assert exchanges > 10
            assert sum(host.turned_away for host in crowd) > CROWD / 10, "they came faster than they were let in"
            for channel in channels:
                await channel.close()
        turned_away = series(coordinator, "turned_away_total", LaneName.DOOR)
        assert turned_away == sum(host.turned_away for host in crowd)
    assert 1 < log_ins.most <= TINY["log_ins_at_once_max"]


async def test_when_all_places_are_taken_the_next_is_told_at_once_and_owners_are_answered(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path / "data", **TINY) as (coordinator, endpoint),
        simulated_hosts(endpoint, 8) as crowd,
        control_plane(endpoint, (coordinator.settings.keys / "operator.token").read_text().strip()) as owner,
    ):
        async with slow_disk(coordinator):
            syncs = [asyncio.create_task(sync(host)) for host in crowd[:6]]

            async def full() -> bool:  # idle hosts may take half of the line
                return waiting(coordinator) == TINY["calls_waiting_max"] / 2

            await eventually(full)
            with pytest.raises(BusyError, match=r"hands full; try again in \d+ s") as busy:
                await sync(crowd[6])
            assert 0 < busy.value.wait_s < 60
            assert (await owner.campaigns.List(campaigns_pb2.ListCampaignsRequest())).campaigns == []
            channel = open_channel(endpoint, lambda: None)
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            await channel.close()
        await asyncio.gather(*syncs)
        assert working(coordinator) == waiting(coordinator) == 0


async def sync(host: SimulatedHost, timeout_s: float | None = None) -> None:
    """A Sync that is not repeated."""
    host.sequence += 1
    await host.stub.Sync(volunteers_pb2.SyncRequest(sequence=host.sequence), timeout=timeout_s)


async def test_nobody_is_worked_for_who_has_gone_or_run_out_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    step = Leasing._step

    def spied(self: Leasing, connection: Connection, caller: Caller, *rest: Any) -> Any:
        served.append(str(caller.host_id))
        return step(self, connection, caller, *rest)

    monkeypatch.setattr(Leasing, "_step", spied)
    async with (
        running_coordinator(tmp_path / "data", **TINY) as (coordinator, endpoint),
        simulated_hosts(endpoint, 5) as crowd,
    ):
        async with slow_disk(coordinator):

            async def stand_in_line(
                host: SimulatedHost, place: int, timeout_s: float | None = None
            ) -> asyncio.Task[None]:
                call = asyncio.create_task(sync(host, timeout_s))

                async def has_come() -> bool:
                    return waiting(coordinator) + working(coordinator) == place

                await eventually(has_come)
                return call

            first = [await stand_in_line(host, place) for place, host in enumerate(crowd[:2], 1)]
            gone = await stand_in_line(crowd[2], 3)
            late = await stand_in_line(crowd[3], 4, timeout_s=0.5)
            patient = await stand_in_line(crowd[4], 5)
            gone.cancel()
            with pytest.raises(UnavailableError, match=r"(?i)deadline"):
                await late

            async def both_left() -> bool:
                return waiting(coordinator) == 1

            await eventually(both_left)
        await asyncio.gather(*first, patient)
        assert sorted(served) == sorted(str(host.host_id) for host in (*crowd[:2], crowd[4]))
        assert working(coordinator) == waiting(coordinator) == 0


async def test_a_forged_ticket_is_worth_nothing(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path / "data", **TINY) as (_, endpoint):
        channel = open_channel(endpoint, lambda: None)
        stub = volunteers_pb2_grpc.VolunteersStub(channel)
        for ticket in ("0.0/" + "0" * 32, "0.0", "nan/", "x" * 4000):
            with pytest.raises(BusyError) as busy:
                for _ in range(50):
                    await stub.GetChallenge(volunteers_pb2.GetChallengeRequest(), metadata=((TICKET_KEY, ticket),))
            assert busy.value.ticket
            assert busy.value.ticket != ticket
        await channel.close()


async def test_long_polls_hold_no_place(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path / "data", **TINY) as (coordinator, endpoint),
        simulated_hosts(endpoint, 5) as crowd,
    ):
        polls = [asyncio.create_task(host.sync(want=1, wait=timedelta(seconds=20))) for host in crowd[:4]]

        async def all_wait_without_a_place() -> bool:
            return len(coordinator.bell._listening) == 4 and working(coordinator) == 0

        await eventually(all_wait_without_a_place)
        at_the_door = crowd[4].turned_away
        await crowd[4].sync()
        assert crowd[4].turned_away == at_the_door
        coordinator.leasing.drain()
        await asyncio.gather(*polls)
