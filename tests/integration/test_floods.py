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
from tests.grids import eventually, push_files, running_coordinator, simulated_hosts

SHORT = {"handshake_max": timedelta(seconds=1)}
ELSEWHERE = "127.0.0.2"


@asynccontextmanager
async def grid_with(folder: Path, **limits: Any) -> AsyncIterator[tuple[Coordinator, GridEndpoint]]:
    async with running_coordinator(folder / "data", **{**SHORT, **limits}) as (coordinator, endpoint):

        async def nobody_is_connected() -> bool:  # whoever asked where the grid is has hung up
            return open_connections(coordinator) == 0

        await eventually(nobody_is_connected)
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


async def was_closed(peer: Peer) -> None:
    """Until the other side hangs up; whatever it says before is thrown away."""
    try:
        async with asyncio.timeout(20):
            while await peer[0].read(1 << 16):
                pass
    except ConnectionError:
        return


def open_connections(coordinator: Coordinator) -> float | None:
    return coordinator.metrics.registry.get_sample_value("memgrid_http_connections")


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
        assert open_connections(grid) == 6
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


@pytest.mark.parametrize("crawls", [False, True])
async def test_content_that_nobody_reads_is_not_held_for_them(tmp_path: Path, crawls: bool) -> None:
    """Silence is the kernel's to end; whoever reads a little now and then is ended by the pace."""
    pace = {"http_bytes_per_s_min": 10_000_000} if crawls else {"http_bytes_per_s_min": 1}
    limits = {"http_silence_max": timedelta(seconds=1), "http_idle_max": timedelta(seconds=60)}
    async with grid_with(tmp_path, **limits, **pace) as (grid, endpoint):
        content = bytes(32 << 20)
        await push_files(grid, "models/large", {"config.json": b"{}", "model.safetensors": content})
        path = f"/v2/models/large/blobs/{digest_of(content)}"
        async with Faults.slow_reader(grid.address.http_port, tls_of(endpoint), path) as (reader, _):

            async def is_over() -> bool:
                if crawls:
                    await reader.read(1 << 10)
                return open_connections(grid) == 0

            async with visitor(endpoint) as honest:
                assert len((await honest.get(path)).content) == 32 << 20
            await eventually(is_over)
        assert await is_served(endpoint)


async def test_silent_connections_to_the_control_plane_run_out_of_time(tmp_path: Path) -> None:
    async with (
        grid_with(tmp_path, grpc_connections_max=6) as (grid, endpoint),
        simulated_hosts(endpoint, 1) as (worker,),
        Faults.silent_connections(grid.address.grpc_port, 12) as flood,
    ):
        for _ in range(5):
            await worker.sync()
        newcomer = SimulatedHost(endpoint=endpoint)
        await asyncio.gather(*(was_closed(peer) for peer in flood))

        async def is_in() -> bool:
            try:
                await newcomer.enrol()
            except UnavailableError:
                return False
            return True

        await eventually(is_in)
        await worker.sync()
        await newcomer.close()
