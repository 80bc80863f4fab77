"""Floods and crawlers: what they may take is limited, others are served meanwhile, and all is well afterwards."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from memgrid.digest import digest_of
from memgrid.endpoint import GridEndpoint
from memgrid.errors import UnavailableError
from memgrid.testing import Faults, SimulatedHost
from memgrid.testing_faults import Peer
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.metrics import Metrics
from memgrid_coordinator.web.bodies import Pace
from tests.grids import eventually, push_files, running_coordinator, simulated_hosts
from tests.integration.data_plane import OPERATOR, push_blob, running

SHORT = {"handshake_max": timedelta(seconds=1)}
ELSEWHERE = "127.0.0.2"
LARGE = bytes(16 << 20)
"""More than the buffers of all kernels between."""


@asynccontextmanager
async def grid_with(folder: Path, **limits: Any) -> AsyncIterator[tuple[Coordinator, GridEndpoint]]:
    async with running_coordinator(folder / "data", **{**SHORT, **limits}) as (coordinator, endpoint):
        await eventually(lambda: has_open(coordinator.metrics, 0))  # whoever asked where the grid is has hung up
        yield coordinator, endpoint


def tls_of(endpoint: GridEndpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=endpoint.certificate_pem)
    context.check_hostname = False
    return context


def visitor(endpoint: GridEndpoint, source: str = ELSEWHERE) -> httpx.AsyncClient:
    """Somebody from an address, who asks once more for nothing that fails."""
    transport = httpx.AsyncHTTPTransport(verify=tls_of(endpoint), local_address=source)
    return httpx.AsyncClient(base_url=endpoint.url, transport=transport, timeout=10)


async def is_served(endpoint: GridEndpoint, source: str = ELSEWHERE) -> bool:
    async with visitor(endpoint, source) as client:
        try:
            return (await client.get("/healthz")).status_code == 200
        except httpx.TransportError:
            return False


async def gets_in(endpoint: GridEndpoint) -> bool:
    newcomer = SimulatedHost(endpoint=endpoint)
    try:
        await newcomer.enrol()
    except UnavailableError:
        return False
    finally:
        await newcomer.close()
    return True


async def was_closed(peer: Peer) -> None:
    """Until the other side hangs up; whatever it says before is thrown away."""
    try:
        async with asyncio.timeout(20):
            while await peer[0].read(1 << 16):
                pass
    except ConnectionError:
        return


async def has_open(metrics: Metrics, count: int) -> bool:
    return metrics.registry.get_sample_value("memgrid_http_connections") == count


async def has_refused(coordinator: Coordinator, limit: str, count: int) -> bool:
    labels = {"limit": limit}
    return coordinator.metrics.registry.get_sample_value("memgrid_connections_refused_total", labels) == count


async def test_one_address_can_not_take_all_connections(tmp_path: Path) -> None:
    async with (
        grid_with(tmp_path, http_connections_per_address_max=6, handshake_max=timedelta(seconds=4)) as (
            grid,
            endpoint,
        ),
        Faults.silent_connections(grid.address.http_port, 20) as flood,
    ):
        await eventually(lambda: has_refused(grid, "address", 14))
        assert await has_open(grid.metrics, 6)
        assert not await is_served(endpoint, "127.0.0.1")
        assert await is_served(endpoint)
        # A handshake that nobody makes ends by itself, and with it the flood.
        await asyncio.gather(*(was_closed(peer) for peer in flood))
        assert await is_served(endpoint, "127.0.0.1")


async def test_when_all_connections_are_taken_those_who_have_one_are_served(tmp_path: Path) -> None:
    async with (
        grid_with(tmp_path, http_connections_max=6, handshake_max=timedelta(seconds=4)) as (grid, endpoint),
        visitor(endpoint) as early,
    ):
        assert (await early.get("/healthz")).status_code == 200
        async with Faults.silent_connections(grid.address.http_port, 8, "127.0.0.3") as flood:
            await eventually(lambda: has_refused(grid, "all", 3))
            assert (await early.get("/healthz")).status_code == 200
            assert not await is_served(endpoint, "127.0.0.4")
            await asyncio.gather(*(was_closed(peer) for peer in flood))
            assert await is_served(endpoint, "127.0.0.4")


async def test_a_request_head_that_trickles_in_is_cut_off(tmp_path: Path) -> None:
    async with grid_with(tmp_path, http_idle_max=timedelta(seconds=1)) as (grid, endpoint):
        async with Faults.trickled_head(grid.address.http_port, tls_of(endpoint), every_s=0.05) as peer:
            assert await is_served(endpoint)
            await was_closed(peer)
        assert await is_served(endpoint)


async def test_a_second_request_head_that_trickles_in_is_cut_off(tmp_path: Path) -> None:
    async with (
        grid_with(tmp_path, http_idle_max=timedelta(seconds=1)) as (grid, endpoint),
        Faults.slow_reader(grid.address.http_port, tls_of(endpoint), "/healthz") as peer,
    ):
        assert await peer[0].readline() == b"HTTP/1.1 200 OK\r\n"
        peer[1].write(b"GET / HTTP/1.1\r\nX: ")
        await was_closed(peer)


async def test_content_that_nobody_reads_is_not_held_for_them(tmp_path: Path) -> None:
    # At this pace only the kernel can tell that nobody reads.
    limits = {"http_silence_max": timedelta(seconds=1), "http_bytes_per_s_min": 1}
    async with grid_with(tmp_path, **limits) as (grid, endpoint):
        await push_files(grid, "models/large", {"config.json": b"{}", "model.safetensors": LARGE})
        path = f"/v2/models/large/blobs/{digest_of(LARGE)}"
        async with Faults.slow_reader(grid.address.http_port, tls_of(endpoint), path):
            async with visitor(endpoint) as honest:
                assert (await honest.get(path)).content == LARGE
            await eventually(lambda: has_open(grid.metrics, 0), limit_s=20)
        assert await is_served(endpoint)


@pytest.mark.parametrize("tls", [True, False])
async def test_whoever_reads_too_slowly_is_cut_off(tmp_path: Path, tls: bool) -> None:
    # The kernel would let this one be for half a minute.
    async with (
        running(tmp_path, pace=Pace(silence_max_s=1.5, bytes_per_s_min=1 << 30), tls=tls) as plane,
        plane.client(OPERATOR) as operator,
    ):
        path = f"/v2/models/large/blobs/{await push_blob(operator, 'models/large', LARGE)}"
        context = ssl._create_unverified_context() if tls else None
        async with Faults.slow_reader(plane.port, context, path, {"Authorization": f"Bearer {OPERATOR}"}):
            assert (await operator.get(path)).content == LARGE
            await eventually(lambda: has_open(plane.metrics, 1), limit_s=20)


async def test_more_connections_to_the_control_plane_than_said_are_closed_at_once(tmp_path: Path) -> None:
    async with (
        grid_with(tmp_path, grpc_connections_max=6, handshake_max=timedelta(minutes=1)) as (grid, endpoint),
        simulated_hosts(endpoint, 1) as (worker,),
    ):
        async with Faults.silent_connections(grid.address.grpc_port, 12) as flood:
            closed = [asyncio.create_task(was_closed(peer)) for peer in flood]

            async def all_but_five() -> bool:  # the sixth is the worker's
                return sum(one.done() for one in closed) >= len(flood) - 5

            await eventually(all_but_five, limit_s=20)
            await worker.sync()
            for one in closed:
                one.cancel()
            await asyncio.gather(*closed, return_exceptions=True)
        await eventually(lambda: gets_in(endpoint))


async def test_silent_connections_to_the_control_plane_run_out_of_time(tmp_path: Path) -> None:
    async with (
        grid_with(tmp_path) as (grid, endpoint),
        simulated_hosts(endpoint, 1) as (worker,),
        Faults.silent_connections(grid.address.grpc_port, 6) as flood,
    ):
        await worker.sync()
        await asyncio.gather(*(was_closed(peer) for peer in flood))
        await eventually(lambda: gets_in(endpoint))
        await worker.sync()
