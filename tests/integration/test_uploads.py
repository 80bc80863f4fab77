"""Uploads that are cut, slow, hostile, or from volunteers: only whole, ordered content counts."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from memgrid.clock import ManualClock, SystemClock
from memgrid.digest import digest_of
from memgrid.units import ReasonCode
from memgrid_coordinator.services.uploads import UploadLimits
from memgrid_coordinator.web.bodies import Pace
from tests.integration.data_plane import (
    OPERATOR,
    STRANGER,
    VOLUNTEER,
    DataPlane,
    OrderBook,
    error_of,
    running,
)

CONTENT = bytes(range(251)) * 20_000  # 5 MB
REPOSITORY = "docs/quick-start"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid") as plane:
        yield plane


@pytest.fixture
async def volunteer(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client(VOLUNTEER) as client:
        yield client


def reason_of(response: httpx.Response) -> str:
    reason: str = response.json()["errors"][0]["detail"]["reason"]
    return reason


async def raw_request(
    plane: DataPlane, head: str, token: str = OPERATOR
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and send the head of a request, to be as rude afterwards as one likes."""
    context = None
    if plane.url.startswith("https"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.port, ssl=context)
    writer.write(f"{head}\r\nHost: grid\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def send_and_cut(plane: DataPlane, location: str, content: bytes, sent_bytes: int) -> None:
    """Announce all of the content, send a part, and break the connection when the part has come."""
    head = f"PATCH {location} HTTP/1.1\r\nContent-Length: {len(content)}"
    _, writer = await raw_request(plane, head, VOLUNTEER)
    writer.write(content[:sent_bytes])
    came = plane.metrics.transferred_bytes.labels("up", "outputs")

    async def has_come() -> bool:
        return bool(came._value.get() >= sent_bytes)

    await until(has_come)
    writer.transport.abort()


async def bytes_there(client: httpx.AsyncClient, location: str, expected: int) -> None:
    """Wait until an upload has that many bytes: the server notices in its own time that a connection is gone."""

    async def are_there() -> bool:
        return (await client.get(location)).headers["Range"] == f"0-{expected - 1}"

    await until(are_there)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - the server's own business: no event of it reaches a client
            await asyncio.sleep(0.01)


async def test_an_ordered_output_is_taken(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]
    assert (await volunteer.patch(location, content=CONTENT)).status_code == 202
    done = await volunteer.put(location, params={"digest": digest_of(CONTENT)})
    assert done.status_code == 201
    assert plane.book.received == [digest_of(CONTENT)]
    assert plane.blobs.read_bytes(digest_of(CONTENT)) == CONTENT
    again = await volunteer.put(location, params={"digest": digest_of(CONTENT)})
    assert again.status_code == 201
    assert plane.book.received == [digest_of(CONTENT)]
    assert plane.book.refused == []


async def test_an_ordered_output_that_is_here_already_need_not_travel(
    plane: DataPlane, volunteer: httpx.AsyncClient
) -> None:
    plane.blobs.put_bytes(CONTENT)
    path = plane.book.order(CONTENT)
    assert (await volunteer.post(path)).status_code == 201
    assert plane.book.received == [digest_of(CONTENT)]


@pytest.mark.parametrize("lease_id", ["lease2", "0" * 32])
async def test_what_was_not_ordered_is_refused_and_counted(
    plane: DataPlane, volunteer: httpx.AsyncClient, lease_id: str
) -> None:
    plane.book.order(CONTENT, "lease1")
    answer = await volunteer.post(f"/v2/grid/outputs/{lease_id}/blobs/uploads/")
    assert error_of(answer) == (403, "DENIED")
    assert reason_of(answer) == "not_ordered"
    assert [reason.code for reason in plane.book.refused] == [ReasonCode.NOT_ORDERED]


async def test_another_hosts_order_is_no_order(plane: DataPlane) -> None:
    path = plane.book.order(CONTENT)
    async with plane.client(STRANGER) as stranger:
        answer = await stranger.post(path, params={"digest": digest_of(CONTENT)}, content=CONTENT)
    assert (answer.status_code, reason_of(answer)) == (403, "not_ordered")
    assert not plane.blobs.has(digest_of(CONTENT))


async def test_an_order_withdrawn_meanwhile_is_no_order(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]
    await volunteer.patch(location, content=CONTENT)
    plane.book.orders.clear()
    answer = await volunteer.put(location, params={"digest": digest_of(CONTENT)})
    assert (answer.status_code, reason_of(answer)) == (403, "not_ordered")
    assert not plane.blobs.has(digest_of(CONTENT))


async def test_one_byte_too_many_is_refused_before_it_is_read(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]
    answer = await volunteer.patch(location, content=CONTENT + b"x")
    assert error_of(answer) == (413, "SIZE_INVALID")
    assert reason_of(answer) == "upload_too_large"
    assert plane.metrics.transferred_bytes.labels("up", "outputs")._value.get() == 0
    assert [reason.code for reason in plane.book.refused] == [ReasonCode.UPLOAD_TOO_LARGE]
    assert list((plane.folder / "partials").iterdir()) == []


async def test_a_stream_without_a_length_ends_where_the_order_does(
    plane: DataPlane, volunteer: httpx.AsyncClient
) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]

    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1 << 20)

    with contextlib.suppress(httpx.WriteError):  # the answer may overtake the sender
        answer = await volunteer.patch(location, content=body())
        assert reason_of(answer) == "upload_too_large"
    assert [reason.code for reason in plane.book.refused] == [ReasonCode.UPLOAD_TOO_LARGE]
    assert plane.metrics.transferred_bytes.labels("up", "outputs")._value.get() < 2 * len(CONTENT)


async def test_a_truncated_output_is_refused(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]
    await volunteer.patch(location, content=CONTENT[:-1])
    answer = await volunteer.put(location, params={"digest": digest_of(CONTENT)})
    assert (answer.status_code, reason_of(answer)) == (400, "upload_truncated")
    assert [reason.code for reason in plane.book.refused] == [ReasonCode.UPLOAD_TRUNCATED]
    assert list((plane.folder / "partials").iterdir()) == []


async def test_other_bytes_than_reported_are_refused(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]
    await volunteer.patch(location, content=b"x" + CONTENT[1:])
    answer = await volunteer.put(location, params={"digest": digest_of(CONTENT)})
    assert error_of(answer) == (400, "DIGEST_INVALID")
    assert reason_of(answer) == "digest_mismatch"
    assert [reason.code for reason in plane.book.refused] == [ReasonCode.DIGEST_MISMATCH]
    assert not plane.blobs.has(digest_of(CONTENT))
    # The order stands: the right bytes are still welcome.
    assert (await volunteer.post(path, params={"digest": digest_of(CONTENT)}, content=CONTENT)).status_code == 201


async def test_the_digest_of_other_bytes_is_not_ordered(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]
    await volunteer.patch(location, content=b"x" + CONTENT[1:])
    answer = await volunteer.put(location, params={"digest": digest_of(b"x" + CONTENT[1:])})
    assert (answer.status_code, reason_of(answer)) == (403, "not_ordered")


async def test_volunteers_push_no_manifests(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    plane.book.order(CONTENT)
    answer = await volunteer.put("/v2/grid/outputs/lease1/manifests/latest", content=b"{}")
    assert error_of(answer) == (403, "DENIED")


async def test_a_cut_upload_goes_on_where_it_was_cut(plane: DataPlane, volunteer: httpx.AsyncClient) -> None:
    path = plane.book.order(CONTENT)
    location = (await volunteer.post(path)).headers["Location"]
    await send_and_cut(plane, location, CONTENT, 3_000_000)
    await bytes_there(volunteer, location, 3_000_000)
    await finish_from(volunteer, location, 3_000_000)
    assert plane.blobs.read_bytes(digest_of(CONTENT)) == CONTENT
    assert plane.book.refused == []


async def test_an_upload_survives_a_restart_in_the_middle(tmp_path: Path) -> None:
    book = OrderBook()
    path = book.order(CONTENT)
    async with running(tmp_path, book=book) as plane, plane.client(VOLUNTEER) as volunteer:
        location = (await volunteer.post(path)).headers["Location"]
        await send_and_cut(plane, location, CONTENT, 3_000_000)
        await bytes_there(volunteer, location, 3_000_000)
    async with running(tmp_path, book=book) as plane, plane.client(VOLUNTEER) as volunteer:
        await bytes_there(volunteer, location, 3_000_000)
        await finish_from(volunteer, location, 3_000_000)
        assert plane.blobs.read_bytes(digest_of(CONTENT)) == CONTENT


async def finish_from(client: httpx.AsyncClient, location: str, offset: int) -> None:
    """Send the rest of CONTENT and close the upload."""
    span = {"Content-Range": f"{offset}-{len(CONTENT) - 1}"}
    sent = await client.patch(location, content=CONTENT[offset:], headers=span)
    assert sent.status_code == 202
    done = await client.put(location, params={"digest": digest_of(CONTENT)})
    assert done.status_code == 201


async def test_an_output_begun_anew_replaces_what_was_begun_before(
    plane: DataPlane, volunteer: httpx.AsyncClient
) -> None:
    path = plane.book.order(CONTENT)
    first = (await volunteer.post(path)).headers["Location"]
    await volunteer.patch(first, content=CONTENT[:1000])
    second = (await volunteer.post(path)).headers["Location"]
    assert (await volunteer.get(first)).status_code == 404
    assert (await volunteer.get(second)).status_code == 204
    assert len(list((plane.folder / "partials").iterdir())) == 2


async def test_nobody_keeps_many_uploads_open(tmp_path: Path) -> None:
    limits = UploadLimits(blob_bytes_max=1 << 20, open_per_owner_max=3)
    async with running(tmp_path, limits=limits) as plane, plane.client(OPERATOR) as operator:
        for _ in range(3):
            assert (await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")).status_code == 202
        answer = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")


async def test_an_upload_that_does_not_fit_on_the_disk_is_refused(tmp_path: Path) -> None:
    limits = UploadLimits(reserve_bytes=1 << 62)
    async with running(tmp_path, limits=limits) as plane, plane.client(OPERATOR) as operator:
        answer = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
        assert answer.status_code == 503
        assert "disk is full" in answer.json()["errors"][0]["message"]


async def test_stale_uploads_are_swept(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with running(tmp_path, clock=clock) as plane, plane.client(OPERATOR) as operator:
        old = (await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")).headers["Location"]
        clock.advance(timedelta(hours=20))
        new = (await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")).headers["Location"]
        clock.advance(timedelta(hours=5))
        assert await plane.uploads.remove_stale() == 1
        assert await plane.uploads.remove_stale() == 0
        assert (await operator.get(old)).status_code == 404
        assert (await operator.get(new)).status_code == 204


async def test_a_silent_sender_is_not_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path, pace=Pace(silence_max_s=0.1)) as plane, plane.client(OPERATOR) as operator:
        location = (await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")).headers["Location"]
        reader, writer = await raw_request(plane, f"PATCH {location} HTTP/1.1\r\nContent-Length: 1000")
        writer.write(b"0123456789")
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.transport.abort()
        await bytes_there(operator, location, 10)


async def test_a_dripping_sender_is_not_waited_for(tmp_path: Path) -> None:
    pace = Pace(silence_max_s=5, window_s=0.2, bytes_per_s_min=100_000)
    async with running(tmp_path, pace=pace, clock=SystemClock()) as plane, plane.client(OPERATOR) as operator:
        location = (await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")).headers["Location"]
        reader, writer = await raw_request(plane, f"PATCH {location} HTTP/1.1\r\nContent-Length: 100000")

        async def drip() -> None:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        dripping.cancel()
        writer.transport.abort()


async def test_permission_to_send_is_given_only_once_it_is_admitted(plane: DataPlane) -> None:
    expect = "Expect: 100-continue"
    path = plane.book.order(CONTENT)
    head = f"POST {path}?digest={digest_of(CONTENT)} HTTP/1.1\r\nContent-Length: {len(CONTENT)}\r\n{expect}"
    reader, writer = await raw_request(plane, head, STRANGER)
    assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
    writer.transport.abort()
    reader, writer = await raw_request(plane, head, VOLUNTEER)
    assert (await reader.readline()).startswith(b"HTTP/1.1 100 ")
    writer.write(CONTENT)
    assert await reader.readline() == b"\r\n"
    assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
    writer.transport.abort()
    assert plane.blobs.has(digest_of(CONTENT))


async def test_a_packed_body_stays_packed(plane: DataPlane) -> None:
    """Bytes are kept as sent: nothing a client says about their coding makes them more."""
    async with plane.client(OPERATOR) as operator:
        answer = await operator.post(
            f"/v2/{REPOSITORY}/blobs/uploads/",
            params={"digest": digest_of(b"not gzip at all")},
            content=b"not gzip at all",
            headers={"Content-Encoding": "gzip"},
        )
        assert answer.status_code == 201


@pytest.mark.parametrize("tls", [True, False])
async def test_a_reader_that_goes_away_disturbs_nobody(
    tmp_path: Path, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, tls=tls) as plane:
        digest = plane.blobs.put_bytes(bytes(64 << 20))
        path = f"/v2/grid/inputs/blobs/{digest}"
        reader, writer = await raw_request(plane, f"GET {path} HTTP/1.1", VOLUNTEER)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.transport.abort()
        async with plane.client(VOLUNTEER) as volunteer:
            assert (await volunteer.get(path, headers={"Range": "bytes=0-9"})).content == bytes(10)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
