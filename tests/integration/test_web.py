"""What anybody may ask a grid over HTTP: facts, health, metrics; and how errors look."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid_coordinator.web.bodies import DEFAULT_PACE
from memgrid_coordinator.web.requests import OciError, requested_range
from tests.integration.data_plane import EXPIRED, OPERATOR, DataPlane, error_of, running


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid") as plane:
        yield plane


@pytest.fixture
async def anybody(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client() as client:
        yield client


async def test_a_grid_says_how_to_reach_it(anybody: httpx.AsyncClient) -> None:
    assert (await anybody.get("/v1/grid")).json() == {
        "name": "test <grid>",
        "version": "0",
        "grpc_port": 7071,
        "grid_key": "00" * 32,
        "enrolment": "open",
        "max_blob_bytes": 16 << 20,
    }


async def test_health_readiness_and_metrics_are_served(anybody: httpx.AsyncClient) -> None:
    assert (await anybody.get("/healthz")).status_code == 200
    assert (await anybody.get("/readyz")).status_code == 200
    metrics = await anybody.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=")
    assert 'memgrid_http_seconds_count{method="GET",route="/healthz",status="200"} 1.0' in metrics.text


async def test_no_stranger_makes_new_metric_labels(plane: DataPlane, anybody: httpx.AsyncClient) -> None:
    for method, path in (("BREW", "/"), ("GET", "/no/such/page"), ("GET", "/v2/a/blobs/b"), ("TEAPOT", "/v2/")):
        await anybody.request(method, path)
    text = (await anybody.get("/metrics")).text
    assert "BREW" not in text and "TEAPOT" not in text and "/no/such" not in text and "/v2/a/" not in text


async def test_what_is_not_there_is_told_as_json(anybody: httpx.AsyncClient) -> None:
    assert error_of(await anybody.get("/no/such/page")) == (404, "NAME_UNKNOWN")
    answer = await anybody.post("/v1/grid")
    assert error_of(answer) == (405, "UNSUPPORTED")
    assert "GET" in answer.headers["Allow"]


async def test_a_registry_client_learns_how_to_bring_a_token(plane: DataPlane, anybody: httpx.AsyncClient) -> None:
    refused = await anybody.get("/v2/")
    assert error_of(refused) == (401, "UNAUTHORIZED")
    realm = f'Bearer realm="{plane.url}/v2/token",service="127.0.0.1:{plane.port}"'
    assert refused.headers["WWW-Authenticate"] == realm
    nobodys = (await anybody.get("/v2/token")).json()["token"]
    assert (await anybody.get("/v2/", headers={"Authorization": f"Bearer {nobodys}"})).status_code == 200
    password = base64.b64encode(f"operator:{OPERATOR}".encode()).decode()
    given = await anybody.get("/v2/token", headers={"Authorization": f"Basic {password}"})
    assert given.json()["token"] == OPERATOR


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {EXPIRED}",
        "Bearer nonsense",
        "Basic !!!",
        "Basic " + base64.b64encode(b"operator:wrong").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Digest x",
        "Bearer \xff\xfe",
    ],
)
async def test_a_false_token_is_refused_everywhere(anybody: httpx.AsyncClient, header: str) -> None:
    for path in ("/v2/", "/v2/token", "/v1/cubes", "/v2/docs/x/tags/list"):
        answer = await anybody.get(path, headers={"Authorization": header.encode("latin-1")})
        assert error_of(answer) == (401, "UNAUTHORIZED")
        assert "WWW-Authenticate" in answer.headers


async def test_a_head_that_never_ends_is_refused(plane: DataPlane, anybody: httpx.AsyncClient) -> None:
    answer = await anybody.get("/healthz", headers={"X-Long": "x" * 100_000})
    assert answer.status_code in (400, 431)
    assert (await anybody.get("/healthz")).status_code == 200


async def test_a_server_can_stop_while_a_client_is_connected(tmp_path: Path) -> None:
    async with running(tmp_path, pace=DEFAULT_PACE) as plane:
        client = plane.client()
        await client.get("/healthz")
    with pytest.raises(httpx.ConnectError):
        await client.get("/healthz")
    await client.aclose()


async def test_many_readers_at_once_each_get_their_own_bytes(plane: DataPlane) -> None:
    contents = [bytes([index]) * 500_000 for index in range(8)]
    digests = [plane.blobs.put_bytes(content) for content in contents]
    async with plane.client("volunteer-token") as client:
        answers = await asyncio.gather(
            *[client.get(f"/v2/grid/inputs/blobs/{digest}") for digest in digests for _ in range(3)]
        )
    assert [answer.content for answer in answers] == [content for content in contents for _ in range(3)]


@given(first=st.integers(0, 30) | st.none(), last=st.integers(0, 30) | st.none(), size_bytes=st.integers(0, 20))
def test_a_range_is_what_slicing_gives(first: int | None, last: int | None, size_bytes: int) -> None:
    content = bytes(range(size_bytes))
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    if first is not None:
        expected = content[first : None if last is None else last + 1]
    else:
        expected = content[-last:] if last else b""
    means_nothing = (first is None and last is None) or (first is not None and last is not None and last < first)
    try:
        part = requested_range(header, size_bytes)
    except OciError as error:
        assert (error.status, expected) == (416, b"")
        return
    if part is None:
        assert means_nothing
    else:
        assert content[part.start : part.start + part.count] == expected != b""
