"""Cut transfers go on where they were cut, against a real HTTP server that cuts them."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from memgrid.clock import SystemClock
from memgrid.digest import Digest, digest_of
from memgrid.errors import (
    DigestMismatchError,
    NotAllowedError,
    TooLargeError,
    UnavailableError,
    UnknownIdError,
)
from memgrid.units import BlobRef, LeaseId, UploadOrder
from memgrid_volunteer.budget import Budget
from memgrid_volunteer.cache import BlobCache
from memgrid_volunteer.owner.traffic import Traffic
from memgrid_volunteer.patience import Backoff
from memgrid_volunteer.transfers import Transfers

CONTENT = random.Random(1).randbytes(3_000_000)
DIGEST = digest_of(CONTENT)
UPLOADS = "/v2/grid/outputs/l1/blobs/uploads/"


class Grid:
    """An OCI data plane of one blob and one upload, that hangs up when told."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.cut_after: list[int] = []
        """How many bytes each of the next requests may carry before the connection is cut."""
        self.ignores_range = False
        self.claims_bytes: int | None = None
        self.sent_bytes = 0
        self.ranges: list[str | None] = []
        self.tokens: list[str | None] = []
        self.refuses: list[web.Response] = []
        self.received = bytearray()
        self.received_bytes = 0
        self.finished: dict[str, bytes] = {}
        self.begun = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v2/grid/inputs/blobs/{digest}", self.get_blob)
        app.router.add_post(UPLOADS, self.begin)
        app.router.add_get(UPLOADS + "u{number}", self.where)
        app.router.add_patch(UPLOADS + "u{number}", self.patch)
        app.router.add_put(UPLOADS + "u{number}", self.finish)
        return app

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("authorization"))
        self.ranges.append(request.headers.get("range"))
        if self.refuses:
            return self.refuses.pop(0)
        found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        start = int(found.group(1)) if found and not self.ignores_range else 0
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["content-range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        response.content_length = (self.claims_bytes or len(self.content)) - start
        await response.prepare(request)
        end = start + self.cut_after.pop(0) if self.cut_after else len(self.content)
        for position in range(start, min(end, len(self.content)), 1 << 16):
            block = self.content[position : min(position + (1 << 16), end)]
            await response.write(block)
            self.sent_bytes += len(block)
        if end < len(self.content):
            assert request.transport is not None
            request.transport.close()
        return response

    async def begin(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("authorization"))
        if self.refuses:
            return self.refuses.pop(0)
        self.begun += 1
        self.received = bytearray()
        return web.Response(status=202, headers=self.progress())

    def progress(self) -> dict[str, str]:
        # The whole URL, as many registries answer: its host must not be believed.
        location = f"http://elsewhere.example{UPLOADS}u{self.begun}"
        return {"location": location, "range": f"0-{max(0, len(self.received) - 1)}"}

    async def where(self, request: web.Request) -> web.Response:
        if int(request.match_info["number"]) != self.begun:
            return web.Response(status=404)
        return web.Response(status=204, headers=self.progress())

    async def patch(self, request: web.Request) -> web.Response:
        start, end = (int(part) for part in request.headers["content-range"].split("-"))
        if start != len(self.received):
            return web.Response(status=416, headers=self.progress())
        limit = self.cut_after.pop(0) if self.cut_after else None
        taken = 0
        async for block in request.content.iter_chunked(1 << 14):
            self.received += block
            self.received_bytes += len(block)
            taken += len(block)
            if limit is not None and taken >= limit:
                assert request.transport is not None
                request.transport.close()
                return web.Response(status=500)
        assert taken == end - start + 1
        return web.Response(status=202, headers=self.progress())

    async def finish(self, request: web.Request) -> web.Response:
        digest = request.query["digest"]
        if self.refuses:
            return self.refuses.pop(0)
        assert digest_of(bytes(self.received)) == digest
        self.finished[digest] = bytes(self.received)
        return web.Response(status=201)


class ProcessKilled(BaseException):
    """The end of the process, in the middle of a transfer."""


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"errors": [{"code": "DENIED", "message": message}]}, status=status)


@pytest.fixture
def grid() -> Grid:
    return Grid()


@pytest.fixture
async def url(grid: Grid) -> AsyncIterator[str]:
    runner = web.AppRunner(grid.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache", limit_bytes=10_000_000)


@pytest.fixture
async def transfers(url: str, cache: BlobCache) -> AsyncIterator[Transfers]:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield made(client, cache)


def made(client: httpx.AsyncClient, cache: BlobCache, backoff: Backoff = lambda attempt, rng: 0.0) -> Transfers:
    clock = SystemClock()
    budget = Budget(traffic=Traffic(cache.folder.parent, clock), clock=clock)
    return Transfers(client, cache, lambda: "token", random.Random(1), budget=budget, backoff=backoff)


def blob(digest: Digest = DIGEST, size_bytes: int = len(CONTENT)) -> BlobRef:
    path = f"/v2/grid/inputs/blobs/{digest}"
    return BlobRef(name="tokens.bin", digest=digest, size_bytes=size_bytes, path=path)


async def test_a_blob_is_fetched_once(transfers: Transfers, grid: Grid) -> None:
    assert (await transfers.fetch(blob())).read_bytes() == CONTENT
    assert (await transfers.fetch(blob())).read_bytes() == CONTENT
    assert grid.ranges == [None] and grid.tokens == ["Bearer token"]


async def test_two_who_want_it_at_once_fetch_it_once(transfers: Transfers, grid: Grid) -> None:
    import asyncio

    await asyncio.gather(*(transfers.fetch(blob()) for _ in range(5)))
    assert grid.ranges == [None]


async def test_a_cut_download_goes_on_where_it_was_cut(transfers: Transfers, grid: Grid) -> None:
    grid.cut_after = [1_000_000, 1_000_000]
    assert (await transfers.fetch(blob())).read_bytes() == CONTENT
    assert grid.ranges[0] is None and len(grid.ranges) == 3
    starts = [int(re.findall(r"\d+", wanted or "")[0]) for wanted in grid.ranges[1:]]
    assert 0 < starts[0] < starts[1] <= 2_000_000
    assert grid.sent_bytes < 1.2 * len(CONTENT)


async def test_a_restarted_process_goes_on_too(url: str, cache: BlobCache, grid: Grid) -> None:
    cache.partial_path(DIGEST).write_bytes(CONTENT[:2_500_000])
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        assert (await made(client, cache).fetch(blob())).read_bytes() == CONTENT
    assert grid.ranges == ["bytes=2500000-"] and grid.sent_bytes == 500_000


async def test_what_another_grid_has_sent_a_part_of_is_begun_anew(url: str, cache: BlobCache, grid: Grid) -> None:
    cache.partial_path(DIGEST, "other.example-443.").write_bytes(b"?" * 2_500_000)
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        assert (await made(client, cache).fetch(blob())).read_bytes() == CONTENT
    assert grid.ranges == [None]


async def test_a_server_that_ignores_the_range_costs_bytes_but_nothing_else(transfers: Transfers, grid: Grid) -> None:
    grid.cut_after, grid.ignores_range = [1_000_000], True
    assert (await transfers.fetch(blob())).read_bytes() == CONTENT


async def test_many_cuts_are_survived_as_long_as_bytes_come(transfers: Transfers, grid: Grid) -> None:
    grid.cut_after = [100_000] * 25
    assert (await transfers.fetch(blob())).read_bytes() == CONTENT
    assert len(grid.ranges) == 26


async def test_a_server_that_only_hangs_up_is_given_up(transfers: Transfers, grid: Grid) -> None:
    grid.cut_after = [0] * 100
    with pytest.raises(UnavailableError, match="given up after 8 attempts"):
        await transfers.fetch(blob())
    assert len(grid.ranges) == 8


async def test_passing_refusals_are_waited_out(transfers: Transfers, grid: Grid) -> None:
    grid.refuses = [refusal(503, "draining"), refusal(401, "token expired"), refusal(429, "slowly")]
    assert (await transfers.fetch(blob())).read_bytes() == CONTENT


async def test_what_the_grid_does_not_have_is_not_asked_for_again(transfers: Transfers, grid: Grid) -> None:
    grid.refuses = [refusal(404, "no such blob")]
    with pytest.raises(UnknownIdError, match="no such blob"):
        await transfers.fetch(blob())
    assert len(grid.ranges) == 1


async def test_other_bytes_are_refused_and_not_kept(transfers: Transfers, grid: Grid, cache: BlobCache) -> None:
    grid.content = CONTENT[:-1] + b"?"
    with pytest.raises(DigestMismatchError):
        await transfers.fetch(blob())
    assert not list((cache.folder / "blobs").iterdir()) and cache.partial_bytes(DIGEST) == 0


async def test_a_wrong_size_is_refused_before_a_byte_is_read(
    transfers: Transfers, grid: Grid, cache: BlobCache
) -> None:
    grid.claims_bytes = len(CONTENT) + 1
    with pytest.raises(DigestMismatchError, match="expected 3000000 bytes, the grid sends 3000001"):
        await transfers.fetch(blob())
    assert cache.partial_bytes(DIGEST) == 0


async def test_what_does_not_fit_is_not_begun(transfers: Transfers, grid: Grid) -> None:
    with pytest.raises(TooLargeError):
        await transfers.fetch(blob(size_bytes=11_000_000))
    assert not grid.ranges


@pytest.fixture
def output(tmp_path: Path) -> Path:
    file = tmp_path / "kv.safetensors"
    file.write_bytes(CONTENT)
    return file


def order() -> UploadOrder:
    return UploadOrder(
        lease_id=LeaseId("l1"), name="kv.safetensors", digest=DIGEST, size_bytes=len(CONTENT), path=UPLOADS
    )


async def test_an_ordered_output_is_uploaded(transfers: Transfers, grid: Grid, output: Path) -> None:
    await transfers.upload(order(), output)
    assert grid.finished == {DIGEST: CONTENT} and grid.tokens == ["Bearer token"]
    assert sorted(output.parent.glob("kv*")) == [output]


async def test_a_cut_upload_goes_on_where_it_was_cut(transfers: Transfers, grid: Grid, output: Path) -> None:
    grid.cut_after = [1_000_000, 1_000_000]
    await transfers.upload(order(), output)
    assert grid.finished == {DIGEST: CONTENT}
    assert grid.begun == 1 and grid.received_bytes == len(CONTENT)


async def test_a_restarted_process_finishes_the_upload(url: str, cache: BlobCache, grid: Grid, output: Path) -> None:
    def killed(attempt: int, rng: random.Random) -> float:
        raise ProcessKilled

    grid.cut_after = [1_000_000]
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        before = made(client, cache, killed)
        with pytest.raises(ProcessKilled):
            await before.upload(order(), output)
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await made(client, cache).upload(order(), output)
    assert grid.finished == {DIGEST: CONTENT}
    assert grid.begun == 1 and grid.received_bytes == len(CONTENT)


async def test_a_server_that_has_forgotten_the_upload_gets_it_anew(
    transfers: Transfers, grid: Grid, output: Path
) -> None:
    output.with_name("kv.safetensors.upload").write_text(UPLOADS + "u99")
    await transfers.upload(order(), output)
    assert grid.finished == {DIGEST: CONTENT}


async def test_an_upload_that_nobody_ordered_is_not_repeated(transfers: Transfers, grid: Grid, output: Path) -> None:
    grid.refuses = [refusal(403, "not ordered")]
    with pytest.raises(NotAllowedError, match="not ordered"):
        await transfers.upload(order(), output)
    assert grid.begun == 0
