"""One URL leads to one grid, and a changed certificate or key is noticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from memgrid.endpoint import GridUrl, async_http_client, discover, fingerprint_of, http_client
from memgrid.errors import InvalidError, UnavailableError, UntrustedGridError
from tests.certificates import Certificate, make_certificate

KEY = "11" * 32


class Server:
    """A grid's HTTP plane, as far as `discover` sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = make_certificate()
        self.description: object = {
            "name": "test grid",
            "version": "0.1.0",
            "grpc_port": 7071,
            "grid_key": KEY,
            "enrolment": "open",
            "max_blob_bytes": 1 << 30,
        }
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def pinned_url(self) -> str:
        return f"{self.url}#sha256={fingerprint_of(self.certificate.certificate_pem.decode())}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/grid", self._grid)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self.certificate.server_context(self.folder)
        )
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def restart_with(self, certificate: Certificate) -> None:
        await self.stop()
        self.certificate = certificate
        await self.start()

    async def _grid(self, request: web.Request) -> web.Response:
        return web.Response(text=json.dumps(self.description), content_type="application/json")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    await server.start()
    yield server
    await server.stop()


async def test_a_pinned_grid_is_found_and_remembered(server: Server) -> None:
    found = await asyncio.to_thread(discover, server.pinned_url)
    assert found.grpc_target == "127.0.0.1:7071"
    assert found.grid_key == bytes.fromhex(KEY)
    assert found.fingerprint is not None and found.fingerprint in server.pinned_url
    # The second visit needs no pin.
    assert await asyncio.to_thread(discover, server.url) == found


async def test_its_http_clients_talk_to_it(server: Server) -> None:
    found = await asyncio.to_thread(discover, server.pinned_url)
    with http_client(found, token="t") as client:
        assert client.headers["authorization"] == "Bearer t"
        assert (await asyncio.to_thread(client.get, "/v1/grid")).json()["name"] == "test grid"
    async with async_http_client(found) as client:
        assert (await client.get("/v1/grid")).status_code == 200


async def test_a_self_made_certificate_needs_a_pin_and_the_error_gives_it(server: Server) -> None:
    with pytest.raises(UntrustedGridError) as failure:
        await asyncio.to_thread(discover, server.url)
    assert server.pinned_url in str(failure.value)


async def test_a_wrong_pin_is_refused(server: Server) -> None:
    with pytest.raises(UntrustedGridError, match="not the pinned"):
        await asyncio.to_thread(discover, f"{server.url}#sha256={'00' * 32}")


async def test_a_changed_certificate_is_noticed_and_a_new_pin_accepts_it(server: Server) -> None:
    await asyncio.to_thread(discover, server.pinned_url)
    await server.restart_with(make_certificate())
    with pytest.raises(UntrustedGridError, match="certificate has changed"):
        await asyncio.to_thread(discover, server.url)
    found = await asyncio.to_thread(discover, server.pinned_url)
    assert await asyncio.to_thread(discover, server.url) == found


async def test_a_client_that_pinned_one_certificate_talks_to_no_other(server: Server) -> None:
    import httpx

    found = await asyncio.to_thread(discover, server.pinned_url)
    await server.restart_with(make_certificate())
    with http_client(found) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(client.get, "/v1/grid")


async def test_a_changed_grid_key_is_noticed(server: Server) -> None:
    await asyncio.to_thread(discover, server.pinned_url)
    assert isinstance(server.description, dict)
    server.description["grid_key"] = "22" * 32
    with pytest.raises(UntrustedGridError, match="key has changed"):
        await asyncio.to_thread(discover, server.url)


@pytest.mark.parametrize("description", [[], {"grid_key": "zz"}, {"grid_key": "11", "grpc_port": 1}])
async def test_what_is_no_grid_is_called_so(server: Server, description: object) -> None:
    server.description = description
    with pytest.raises(InvalidError, match="is no grid"):
        await asyncio.to_thread(discover, server.pinned_url)


async def test_nobody_there_is_unavailable(server: Server) -> None:
    await server.stop()
    with pytest.raises(UnavailableError, match="does not answer"):
        await asyncio.to_thread(discover, server.pinned_url)
    await server.start()


@pytest.mark.parametrize(
    "url",
    [
        "grid.example",
        "ftp://grid.example",
        "http://grid.example",
        "https://",
        "https://grid.example/x",
        "https://grid.example:port",
        "https://grid.example#sha256=12",
        "https://grid.example#md5=" + "0" * 64,
    ],
)
def test_a_url_that_can_not_be_meant_is_invalid(url: str) -> None:
    with pytest.raises(InvalidError, match="grid URL"):
        GridUrl.parse(url)


def test_plain_http_is_for_loopback_or_for_who_insists() -> None:
    assert GridUrl.parse("http://[::1]:7070").base == "http://[::1]:7070"
    assert GridUrl.parse("http://localhost:7070").pin is None
    assert GridUrl.parse("http://grid.example", insecure=True).base == "http://grid.example"
