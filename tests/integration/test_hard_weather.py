"""Bad luck of a coordinator's machine: a clear answer while it lasts, nothing lost, and on without hands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memgrid.clock import ManualClock, SystemClock
from memgrid.errors import InvalidError, TokenExpiredError, UnavailableError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import Faults, SimulatedGpu, SimulatedHost, SimulatedWork
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.records import Submission
from tests.grids import (
    campaign_of,
    eventually,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
    work_on,
)

TEXT = "The valve opens at three bar and closes at two. " * 4
FULL = "the grid's disk is full; try again later"


@contextmanager
def disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A small disk, or the test is skipped."""
    with ExitStack() as stack:
        try:
            stack.enter_context(Faults.small_disk(folder, size_bytes))
        except PermissionError as error:
            pytest.skip(f"needs a file system of its own: {error}")
        yield folder


async def compute(
    coordinator: Coordinator, hosts: list[SimulatedHost], gpu: SimulatedGpu
) -> dict[SimulatedHost, list[SimulatedWork]]:
    """Let every host take all it can and report it; nothing is uploaded."""
    reported: dict[SimulatedHost, list[SimulatedWork]] = {}
    for host in hosts:
        offers = (await host.sync(want=8)).leases
        reported[host] = [await work_on(coordinator, gpu, offer) for offer in offers]
        await host.sync(work=reported[host])
    return reported


async def completed(coordinator: Coordinator, submission: Submission) -> bool:
    return (await campaign_of(coordinator, submission)).state is CampaignState.COMPLETED


@pytest.mark.parametrize("reserve_bytes", [0, 1 << 20])
async def test_a_full_content_store_turns_uploads_down_until_there_is_room(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry, reserve_bytes: int
) -> None:
    with disk(tmp_path / "blobs", 16 << 20) as blobs:
        changed = {"blobs_url": str(blobs), "disk_reserve_bytes": reserve_bytes}
        async with running_coordinator(tmp_path / "data", **changed) as (coordinator, endpoint):
            await push_model(coordinator, tiny_model_folder)
            submission = await submit(coordinator, {"manual.txt": TEXT})
            async with simulated_hosts(endpoint, 2) as hosts:
                gpu = SimulatedGpu(geometry)
                reported = await compute(coordinator, hosts, gpu)
                with Faults.full_disk(blobs):
                    answers = [
                        await host.upload(order, work.content)
                        for host, works in reported.items()
                        for order in (await host.sync()).uploads
                        for work in works
                        if work.claim.lease_id == order.lease_id
                    ]
                    assert {answer.status_code for answer in answers} == {503}
                    assert {answer.json()["errors"][0]["message"] for answer in answers} == {FULL}
                    with pytest.raises(UnavailableError, match="full"):
                        await submit(coordinator, {"other.txt": "Nothing fits."}, request_id="request-2")
                await run_until_ended(coordinator, submission, dict.fromkeys(hosts, gpu), reported)
            assert await completed(coordinator, submission)
            assert list((blobs / "tmp").iterdir()) == []
            assert (await coordinator.scrubbing.run()).losses == []


async def test_a_content_store_that_can_only_be_read_says_so_and_comes_back(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    with disk(tmp_path / "blobs", 16 << 20) as blobs:
        changed = {"blobs_url": str(blobs), "disk_reserve_bytes": 0}
        async with running_coordinator(tmp_path / "data", **changed) as (coordinator, endpoint):
            await push_model(coordinator, tiny_model_folder)
            with Faults.read_only_disk(blobs), pytest.raises(UnavailableError, match="can only be read"):
                await submit(coordinator, {"manual.txt": TEXT})
            submission = await submit(coordinator, {"manual.txt": TEXT})
            async with simulated_hosts(endpoint, 2) as hosts:
                gpu = SimulatedGpu(geometry)
                reported = await compute(coordinator, hosts, gpu)
                with Faults.read_only_disk(blobs):
                    await asyncio.sleep(0.2)  # sweeps go on, and find nothing that they could spoil
                await run_until_ended(coordinator, submission, dict.fromkeys(hosts, gpu), reported)
            assert await completed(coordinator, submission)


async def test_a_full_data_folder_loses_nothing_that_was_acknowledged(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    with disk(tmp_path / "data", 32 << 20) as data:
        async with running_coordinator(data, disk_reserve_bytes=0) as (coordinator, endpoint):
            await push_model(coordinator, tiny_model_folder)
            submission = await submit(coordinator, {"manual.txt": TEXT})
            async with simulated_hosts(endpoint, 2) as hosts:
                gpu = SimulatedGpu(geometry)
                reported = await compute(coordinator, hosts, gpu)
                with Faults.full_disk(data):
                    refused = 0
                    for number in range(200):
                        try:
                            await submit(coordinator, {"x.txt": TEXT * 9}, request_id=f"more-{number}", name="more")
                        except UnavailableError:
                            refused += 1
                            break
                    assert refused, "a campaign fits nowhere"
                await run_until_ended(coordinator, submission, dict.fromkeys(hosts, gpu), reported)
            assert await completed(coordinator, submission)


@pytest.mark.parametrize("plane", ["http_port", "grpc_port"])
async def test_a_port_that_is_taken_is_said_in_one_line_and_leaves_nothing_behind(tmp_path: Path, plane: str) -> None:
    option = plane.replace("_", "-")
    with (
        Faults.port_taken() as port,
        pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port} is taken .* --{option}"),
    ):
        async with running_coordinator(tmp_path / "data", **{plane: port}):
            pass
    async with running_coordinator(tmp_path / "data") as (coordinator, _):
        assert coordinator.address.http_port


async def test_an_expired_certificate_is_said_before_anybody_meets_it(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path / "data"):
        pass
    late = ManualClock(datetime.now(UTC) + timedelta(days=3651))
    with pytest.raises(InvalidError, match=r"tls\.crt: the certificate ran out on 20\d\d-\d\d-\d\d: renew it"):
        async with running_coordinator(tmp_path / "data", clock=late):
            pass


class JumpingClock(SystemClock):
    """The machine's clock, set wrong by `ahead`; what measures durations goes on evenly."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.mark.parametrize("ahead", [timedelta(days=2), timedelta(days=-2)])
async def test_a_clock_that_jumps_costs_leases_but_no_campaign(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry, ahead: timedelta
) -> None:
    clock = JumpingClock()
    async with running_coordinator(tmp_path / "data", clock=clock) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        submission = await submit(coordinator, {"manual.txt": TEXT})
        async with simulated_hosts(endpoint, 2) as hosts:
            held = (await hosts[0].sync(want=2)).leases
            clock.ahead = ahead
            if ahead > timedelta(0):
                with pytest.raises(TokenExpiredError):
                    await hosts[0].sync(held=held)
            for host in hosts:
                await host.log_in()
            if ahead > timedelta(0):

                async def is_withdrawn() -> bool:
                    return len((await hosts[0].sync(held=held)).cancelled) == len(held)

                await eventually(is_withdrawn)
            gpu = SimulatedGpu(geometry)
            reported: dict[SimulatedHost, list[SimulatedWork]] = {}
            if ahead < timedelta(0):
                reported[hosts[0]] = [await work_on(coordinator, gpu, offer) for offer in held]
                await hosts[0].sync(work=reported[hosts[0]])
            await run_until_ended(coordinator, submission, dict.fromkeys(hosts, gpu), reported)
        assert await completed(coordinator, submission)
