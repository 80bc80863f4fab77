"""The data plane's doors: names that lead elsewhere, senders that never finish, cubes under wrong names."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from memgrid import Pool
from memgrid.cube.oci import OCI_MANIFEST_TYPE
from memgrid.digest import digest_of
from memgrid.endpoint import GridEndpoint
from memgrid.errors import InvalidError, NotVerifiedError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu
from memgrid_coordinator.app import Coordinator
from tests.grids import (
    push_files,
    push_model,
    run_until_ended,
    running_coordinator,
    simulated_hosts,
    submit,
    work_on,
)
from tests.integration.attacks.attackers import TEXT, TWO, ordered, raw_line, standing, visitor

TRAVERSALS = [
    "/v2/..%2f..%2fkeys/blobs/{digest}",
    "/v2/a/../../../keys/blobs/{digest}",
    "/v2/a%00b/blobs/{digest}",
    "/v2/a\\..\\b/blobs/{digest}",
    "/v2/models/tiny/blobs/sha256:..%2f..%2f..%2fkeys%2foperator.token",
    "/v2/models/tiny/blobs/sha256:%2e%2e%2f%2e%2e%2fkeys",
    "/v2/models/tiny/blobs//etc/passwd",
    "/v2/models/tiny/manifests/..%2f..%2f..%2fkeys%2foperator.token",
    "/v2/models/tiny/blobs/uploads/..%2f..%2fmemgrid.db",
    "/v2/grid/inputs/blobs/..%2f..%2fmemgrid.db",
    "/v2/grid/outputs/..%2f..%2f..%2fkeys/blobs/uploads/",
    "/static/..%2f..%2f..%2fsettings.py",
    "/static/../../../../keys/operator.token",
    "/cubes/..%2f..%2fkeys",
    "//etc/passwd",
]


async def test_path_traversal_leads_nowhere(grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry) -> None:
    """The attacker writes paths that lead out of the content store, to read the grid's keys or overwrite its files.

    Names and digests are matched whole before anything is looked up; what is stored is found by digest, not by name.
    """
    coordinator, endpoint = grid
    secret = (coordinator.settings.data / "keys" / "operator.token").read_text().strip()
    async with simulated_hosts(endpoint, 1) as (host,):
        before, files = await standing(coordinator), _files(coordinator)
        for token in (None, host.token, secret):
            async with visitor(endpoint, token) as http:
                for path in TRAVERSALS:
                    for method in ("GET", "PUT", "POST", "PATCH", "DELETE"):
                        answer = await http.request(method, path.format(digest=digest_of(b"")), content=b"x")
                        assert 400 <= answer.status_code < 500, (method, path, answer.status_code)
                        assert secret not in answer.text and "root:" not in answer.text
        assert await standing(coordinator) == before
        assert _files(coordinator) == files


def _files(coordinator: Coordinator) -> set[str]:
    """What lies in the data folder, less what comes and goes by itself."""
    folder = coordinator.settings.data
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("memgrid.db", "client"))}


async def test_model_files_with_names_that_lead_elsewhere_are_refused(
    grid: tuple[Coordinator, GridEndpoint],
) -> None:
    """An operator's token was stolen: a model is pushed whose files are called `../x`, or are code, or pickles.

    A model in the pool has only files that a loader reads as data, under plain names of their own.
    """
    coordinator, _ = grid
    before = await standing(coordinator)
    for name in ("../modeling.py", "modeling.py", "/etc/passwd", "weights.bin", "a/../../b.safetensors", "x\0.json"):
        with pytest.raises(InvalidError, match=r"not a file a model may have|unsafe file name"):
            await push_files(coordinator, "models/evil", {"config.json": b"{}", name: b"x"})
    assert (await standing(coordinator)).cubes == before.cubes


async def test_slow_loris_uploads_are_cut_off_and_others_served(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    """The attacker holds connections and orders open: heads that never end, bodies a byte at a time.

    Heads and bodies have a pace to keep; from one address there are only so many connections; and an ordered upload
    that does not come in time goes to somebody else.
    """
    slow = {
        "http_silence_max": timedelta(seconds=1),
        "http_idle_max": timedelta(seconds=1),
        "http_connections_per_address_max": 12,
    }
    async with running_coordinator(tmp_path / "data", **slow) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        await submit(coordinator, {"manual.txt": TEXT}, trust=TWO)
        gpu = SimulatedGpu(geometry)
        async with simulated_hosts(endpoint, 2) as pair:
            host, order, work = await ordered(coordinator, pair, lambda offer: work_on(coordinator, gpu, offer))
            async with visitor(endpoint, host.token) as http:
                location = (await http.post(order.path)).headers["location"]
            before = await standing(coordinator)
            heads = [
                f"PATCH {location} HTTP/1.1\r\nHost: grid\r\nAuthorization: Bearer {host.token}\r\n"
                f"Content-Length: {len(work.content)}\r\n\r\nx",
                "GET / HTTP/1.1\r\nX: ",
            ]
            async with AsyncExitStack() as opened:
                lines = [await opened.enter_async_context(raw_line(coordinator, endpoint)) for _ in range(8)]
                for number, (_, writer) in enumerate(lines):
                    writer.write(heads[min(number, 1)].encode())
                    await writer.drain()
                async with visitor(endpoint) as http:
                    assert (await http.get("/healthz")).status_code == 200
                ends = await asyncio.gather(*(_end_of(reader) for reader, _ in lines))
            assert all(not end or end.startswith(b"HTTP/1.1 408 ") for end in ends), ends
            assert await standing(coordinator) == before
            assert (await host.upload(order, work.content)).status_code == 201


async def _end_of(reader: asyncio.StreamReader) -> bytes:
    """The status line, or nothing, with which the other side hangs up; TimeoutError when it never does."""
    try:
        async with asyncio.timeout(30):
            return await reader.readline()
    except ConnectionError:
        return b""


async def _published(
    coordinator: Coordinator, endpoint: GridEndpoint, geometry: ModelGeometry, version: str, text: str
) -> None:
    publish = {"namespace": "handbook", "version": version, "licence": "CC-BY-4.0"}
    asked = {"request_id": version, "name": f"handbook-{version.replace('.', '-')}", "publish": publish, "trust": TWO}
    submission = await submit(coordinator, {"manual.txt": text, "other.txt": text.upper()}, **asked)
    gpu = SimulatedGpu(geometry)
    async with simulated_hosts(endpoint, 2) as hosts:
        await run_until_ended(coordinator, submission, dict.fromkeys(hosts, gpu))


async def test_catalogue_rollback_is_noticed(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry, tmp_path: Path
) -> None:
    """The attacker may push tags (a stolen operator token, a mirror) but has not the grid's key: he lets `latest`
    lead back to a cube with a hole that was mended since, or an old cube stand under a new version or name.

    A cube is believed under the name and version that were signed, and a moving tag never leads back behind what it
    led this consumer to. A consumer who was never there before can't know: name the version.
    """
    coordinator, endpoint = grid
    await _published(coordinator, endpoint, geometry, "1.0.0", TEXT)
    old = await coordinator.publishing.resolve("handbook/manual:1.0.0")
    await _published(coordinator, endpoint, geometry, "1.1.0", TEXT + "It leaks.")
    client = coordinator.settings.data / "client"
    with Pool(endpoint.url, home=client, cache=tmp_path / "cache") as pool:
        await _expect_no_way_back(coordinator, endpoint, pool, old.content)


async def _expect_no_way_back(coordinator: Coordinator, endpoint: GridEndpoint, pool: Pool, old: bytes) -> None:
    newest = await asyncio.to_thread(pool.pull, "handbook/manual:latest")
    assert newest.manifest.version == "1.1.0"
    before = await standing(coordinator)
    secret = (coordinator.settings.data / "keys" / "operator.token").read_text().strip()
    async with visitor(endpoint, secret) as thief, visitor(endpoint) as nobody:
        for reference in ("handbook/manual/manifests/latest", "handbook/manual/manifests/2.0.0"):
            assert (await _push(nobody, reference, old)).status_code == 401
            assert (await _push(thief, reference, old)).status_code == 201
        blobs = [layer["digest"] for layer in [*_json(old)["layers"], _json(old)["config"]]]
        for digest in blobs:
            mounting = {"mount": digest, "from": "handbook/manual"}
            assert (await thief.post("/v2/handbook/other/blobs/uploads/", params=mounting)).status_code == 201
        assert (await _push(thief, "handbook/other/manifests/1.1.0", old)).status_code == 201
    for reference, why in (
        ("handbook/manual:latest", r"offers version 1\.0\.0, and 1\.1\.0 is here"),
        ("handbook/manual:2.0.0", r"signed as version 1\.0\.0"),
        ("handbook/other:1.1.0", "signed as handbook/manual"),
    ):
        with pytest.raises(NotVerifiedError, match=why):
            await asyncio.to_thread(pool.pull, reference)
    assert (await asyncio.to_thread(pool.pull, "handbook/manual:1.0.0")).manifest.version == "1.0.0", "by its name"
    with pytest.raises(NotVerifiedError, match="offers version"):  # though it is in the cache now
        await asyncio.to_thread(pool.pull, "handbook/manual:latest")
    assert (await standing(coordinator)).credit_lines == before.credit_lines


async def _push(client: httpx.AsyncClient, reference: str, content: bytes) -> httpx.Response:
    return await client.put(f"/v2/{reference}", content=content, headers={"Content-Type": OCI_MANIFEST_TYPE})


def _json(content: bytes) -> dict[str, list[dict[str, str]]]:

    value: dict[str, list[dict[str, str]]] = json.loads(content)
    return value
