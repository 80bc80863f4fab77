"""What is done of a unit goes from one host of an account to another, and to nobody else, whatever they try."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from memgrid.clock import ManualClock
from memgrid.digest import Digest, digest_of
from memgrid.endpoint import GridEndpoint, async_http_client
from memgrid.signing import SigningKey
from memgrid.testing import SimulatedHost
from memgrid.units import CheckpointRef, LeaseOffer, Reason, ReasonCode, Release, UploadOrder
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.records import CampaignId
from memgrid_coordinator.store import checkpoints, events
from tests.grids import OPERATOR, push_model, running_coordinator, submit

TEXT = "The valve opens at three bar."
CONTENT = bytes(range(256)) * 40
PAUSED = Reason(code=ReasonCode.OWNER_PAUSED)


@dataclass
class Grid:
    """A coordinator with one unit, a donor's two machines, and somebody else's."""

    coordinator: Coordinator
    endpoint: GridEndpoint
    first: SimulatedHost
    second: SimulatedHost
    stranger: SimulatedHost
    campaign_id: CampaignId

    async def lease(self, host: SimulatedHost) -> LeaseOffer:
        (offer,) = (await host.sync(want=1)).leases
        return offer

    async def offer(self, host: SimulatedHost, release: Release) -> tuple[UploadOrder, ...]:
        return (await host.sync(released=[release])).uploads

    async def leave(self, content: bytes = CONTENT, progress: float = 0.5) -> LeaseOffer:
        """The first host gives its lease back, and what it has done of it is taken in."""
        lease = await self.lease(self.first)
        (order,) = await self.offer(self.first, released(lease, content, progress))
        assert (await self.first.upload(order, content)).status_code == 201
        return lease

    async def get(self, token: str | None, path: str) -> httpx.Response:
        async with async_http_client(self.endpoint, token) as http:
            return await http.get(path)

    async def kept(self) -> frozenset[Digest]:
        return await self.coordinator.store.read(checkpoints.named)

    def on_disk(self) -> set[str]:
        folder = self.coordinator.settings.checkpoints / "sha256"
        return {path.name for path in folder.glob("*/*")}


def released(
    lease: LeaseOffer, content: bytes = CONTENT, progress: float = 0.5, reason: Reason = PAUSED, **changed: object
) -> Release:
    ref = CheckpointRef(digest=digest_of(content), size_bytes=len(content), progress=progress)
    return Release(lease_id=lease.lease_id, fence=lease.fence, reason=reason, checkpoint=replace(ref, **changed))


@asynccontextmanager
async def grid_of(data: Path, model: Path, *, replicas: int = 2, **changed: object) -> AsyncIterator[Grid]:
    async with AsyncExitStack() as stack:
        coordinator, endpoint = await stack.enter_async_context(running_coordinator(data, **changed))
        await push_model(coordinator, model)
        submission = await submit(coordinator, {"manual.txt": TEXT}, trust={"min_replicas": replicas})
        key = SigningKey.generate()
        hosts = [
            SimulatedHost(endpoint=endpoint, key=key, label="attic"),
            SimulatedHost(endpoint=endpoint, key=key, label="cellar"),
            SimulatedHost(endpoint=endpoint),
        ]
        for host in hosts:
            stack.push_async_callback(host.close)
            await host.enrol()
        yield Grid(coordinator, endpoint, *hosts, submission.campaign.campaign_id)


@pytest.fixture
async def grid(tmp_path: Path, tiny_model_folder: Path) -> AsyncIterator[Grid]:
    async with grid_of(tmp_path / "data", tiny_model_folder) as grid:
        yield grid


async def test_only_hosts_of_the_same_account_go_on_from_what_was_left(grid: Grid) -> None:
    lease = await grid.lease(grid.first)
    # Given back at once; what is packed meanwhile comes with a second word, and the order again when it is lost.
    assert not (await grid.first.sync(released=[replace(released(lease), checkpoint=None)])).uploads
    (order,) = await grid.offer(grid.first, released(lease))
    assert (order,) == await grid.offer(grid.first, released(lease))
    assert (await grid.lease(grid.stranger)).checkpoint is None
    assert (await grid.first.upload(order, CONTENT)).status_code == 201
    assert await grid.offer(grid.first, released(lease)) == (), "it is here"
    given = await grid.lease(grid.second)
    assert given.unit_key == lease.unit_key and given.checkpoint is not None
    ref = given.checkpoint
    assert (ref.digest, ref.size_bytes, ref.progress) == (digest_of(CONTENT), len(CONTENT), 0.5)
    assert (await grid.get(grid.second.token, ref.path)).content == CONTENT
    (again,) = (await grid.second.sync()).leases
    assert again.checkpoint == ref, "a lost answer loses nothing of it"
    story = await grid.coordinator.store.read(lambda connection: events.of_host(connection, grid.first.host_id))
    assert [event.name for event in story][-3:] == ["lease_released", "checkpoint_ordered", "checkpoint_kept"]


async def test_nobody_else_reads_it_whatever_they_know(grid: Grid) -> None:
    lease = await grid.leave()
    digest = digest_of(CONTENT)
    await grid.lease(grid.stranger)
    operator = grid.coordinator.tokens.operator_token
    place = f"/v2/grid/checkpoints/{lease.lease_id}"
    for token, path, status in (
        (grid.stranger.token, f"{place}/blobs/{digest}", 404),
        (grid.stranger.token, f"/v2/grid/inputs/blobs/{digest}", 404),
        (grid.second.token, f"/v2/grid/inputs/blobs/{digest}", 404),
        (grid.second.token, f"/v2/grid/checkpoints/{'0' * 32}/blobs/{digest}", 404),
        (grid.second.token, f"{place}/blobs/{digest_of(b'other')}", 404),
        (operator, f"{place}/blobs/{digest}", 403),
        (None, f"{place}/blobs/{digest}", 401),
        (grid.second.token, f"{place}/blobs/{digest}", 200),
    ):
        assert (await grid.get(token, path)).status_code == status, path


async def test_who_knows_only_the_digest_has_not_got_it(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with grid_of(tmp_path / "data", tiny_model_folder, replicas=3) as grid:
        await grid.leave()
        mine = await grid.lease(grid.stranger)
        (order,) = await grid.offer(grid.stranger, released(mine))
        async with async_http_client(grid.endpoint, grid.stranger.token) as http:
            begun = await http.post(f"{order.path}?digest={order.digest}")
            assert begun.status_code == 202, "what is here already is no gift"
            mounted = await http.post(f"{order.path}?mount={order.digest}&from=grid/inputs")
            assert mounted.status_code == 202
            own = f"/v2/grid/checkpoints/{mine.lease_id}"
            manifest = await http.put(f"{own}/manifests/latest", content=b"{}")
            assert manifest.status_code == 403
            assert (await http.get(f"{own}/blobs/{order.digest}")).status_code == 404


async def test_an_input_that_is_called_a_checkpoint_stays_everybodys(grid: Grid) -> None:
    lease = await grid.lease(grid.first)
    (tokens,) = lease.inputs
    content = grid.coordinator.blobs.read_bytes(tokens.digest)
    (order,) = await grid.offer(grid.first, released(lease, content))
    assert (await grid.first.upload(order, content)).status_code == 201
    assert (await grid.get(grid.stranger.token, tokens.path)).content == content
    assert grid.on_disk(), "what lies elsewhere is sent all the same"


@pytest.mark.parametrize("fault", ["other bytes", "too many", "too few", "another host", "another lease"])
async def test_what_was_not_ordered_is_not_taken(fault: str, grid: Grid) -> None:
    lease = await grid.lease(grid.first)
    (order,) = await grid.offer(grid.first, released(lease))
    sender, content, status = grid.first, CONTENT, 400
    match fault:
        case "other bytes":
            content = CONTENT[:-1] + b"?"
        case "too many":
            content, status = CONTENT * 2, 413
        case "too few":
            content = CONTENT[:-1]
        case "another host":
            sender, status = grid.second, 403
        case _:
            order, status = replace(order, path=order.path.replace(lease.lease_id, "0" * 32)), 403
    assert (await sender.upload(order, content)).status_code == status
    assert not grid.on_disk()
    assert (await grid.lease(grid.second)).checkpoint is None
    assert grid.coordinator.metrics.refusals.collect()[0].samples, "it was counted"


Spoil = Callable[[Grid, LeaseOffer], Awaitable[tuple[SimulatedHost, Release]]]


async def _of_another_fence(grid: Grid, lease: LeaseOffer) -> tuple[SimulatedHost, Release]:
    return grid.first, replace(released(lease), fence=lease.fence + 1)


async def _of_somebody_else(grid: Grid, lease: LeaseOffer) -> tuple[SimulatedHost, Release]:
    await grid.first.sync(released=[replace(released(lease), checkpoint=None)])
    return grid.second, released(lease)


async def _after_a_failure(grid: Grid, lease: LeaseOffer) -> tuple[SimulatedHost, Release]:
    return grid.first, released(lease, reason=Reason(code=ReasonCode.DEVICE_FAILED))


async def _too_large(grid: Grid, lease: LeaseOffer) -> tuple[SimulatedHost, Release]:
    return grid.first, released(lease, size_bytes=64 << 20)


async def _empty(grid: Grid, lease: LeaseOffer) -> tuple[SimulatedHost, Release]:
    return grid.first, released(lease, size_bytes=0)


async def _of_nothing(grid: Grid, lease: LeaseOffer) -> tuple[SimulatedHost, Release]:
    return grid.first, released(lease, progress=0.0)


@pytest.mark.parametrize(
    "spoil", [_of_another_fence, _of_somebody_else, _after_a_failure, _too_large, _empty, _of_nothing]
)
async def test_what_may_not_be_left_is_not_ordered(spoil: Spoil, grid: Grid) -> None:
    host, release = await spoil(grid, await grid.lease(grid.first))
    assert await grid.offer(host, release) == ()
    assert await grid.kept() == frozenset()


async def test_a_unit_that_nobody_waits_for_needs_no_checkpoint(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with grid_of(tmp_path / "data", tiny_model_folder, replicas=1) as grid:
        lease = await grid.lease(grid.first)
        await grid.first.sync(released=[replace(released(lease), checkpoint=None)])
        await grid.lease(grid.stranger)
        assert await grid.offer(grid.first, released(lease)) == ()


async def test_a_grid_that_keeps_none_orders_none(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with grid_of(tmp_path / "data", tiny_model_folder, checkpoint_bytes_max=0) as grid:
        assert await grid.offer(grid.first, released(await grid.lease(grid.first))) == ()


async def test_an_order_and_what_came_outlive_the_coordinator(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with grid_of(tmp_path / "data", tiny_model_folder) as grid:
        lease = await grid.lease(grid.first)
        (order,) = await grid.offer(grid.first, released(lease))
    async with running_coordinator(tmp_path / "data") as (_, endpoint):
        first, second = (replace_endpoint(host, endpoint) for host in (grid.first, grid.second))
        await first.log_in()
        assert (await first.upload(order, CONTENT)).status_code == 201
        await first.close()
    async with running_coordinator(tmp_path / "data") as (_, endpoint):
        second = replace_endpoint(second, endpoint)
        await second.log_in()
        (given,) = (await second.sync(want=1)).leases
        assert given.checkpoint is not None
        async with async_http_client(endpoint, second.token) as http:
            assert (await http.get(given.checkpoint.path)).content == CONTENT
        await second.close()


def replace_endpoint(host: SimulatedHost, endpoint: GridEndpoint) -> SimulatedHost:
    other = SimulatedHost(endpoint=endpoint, key=host.key, label=host.label)
    other.host_id = host.host_id
    return other


async def test_it_is_forgotten_when_nobody_came(tmp_path: Path, tiny_model_folder: Path) -> None:
    clock = ManualClock(datetime.now(UTC))
    async with grid_of(tmp_path / "data", tiny_model_folder, clock=clock) as grid:
        await grid.leave()
        clock.advance(timedelta(hours=23))
        assert await grid.coordinator.sweeps.run_now("checkpoints") == 0
        await grid.second.log_in()  # its token is too old by then
        assert (await grid.lease(grid.second)).checkpoint is not None and grid.on_disk()
        clock.advance(timedelta(hours=1, seconds=1))
        assert await grid.coordinator.sweeps.run_now("checkpoints") == 1
        assert await grid.kept() == frozenset() and not grid.on_disk()


async def test_it_is_forgotten_when_its_unit_has_ended(tmp_path: Path, tiny_model_folder: Path) -> None:
    clock = ManualClock(datetime.now(UTC))
    async with grid_of(tmp_path / "data", tiny_model_folder, clock=clock) as grid:
        await grid.leave()
        await grid.coordinator.campaigns.cancel(OPERATOR, grid.campaign_id)
        clock.advance(timedelta(minutes=11))
        assert await grid.coordinator.sweeps.run_now("checkpoints") == 1
        assert await grid.kept() == frozenset() and not grid.on_disk()


async def test_who_fails_with_it_is_not_given_it_again(grid: Grid) -> None:
    await grid.leave()
    given = await grid.lease(grid.second)
    assert given.checkpoint is not None
    failed = Reason(code=ReasonCode.INPUT_UNAVAILABLE)
    release = Release(lease_id=given.lease_id, fence=given.fence, reason=failed)
    answer = await grid.second.sync(released=[release], want=1)
    assert [offer.checkpoint for offer in answer.leases] == [None]
