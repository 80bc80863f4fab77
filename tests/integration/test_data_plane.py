"""Blobs on the data plane: down by range, up in pieces, and nobody gets what isn't theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from memgrid.digest import digest_of
from tests.integration.data_plane import (
    EXPIRED,
    OPERATOR,
    STRANGER,
    VOLUNTEER,
    DataPlane,
    descriptor,
    error_of,
    manifest_of,
    push_blob,
    push_manifest,
    running,
)

CONTENT = bytes(range(256)) * 8192  # 2 MiB
REPOSITORY = "docs/quick-start"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[DataPlane]:
    async with running(tmp_path / "grid") as plane:
        yield plane


@pytest.fixture
async def operator(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client(OPERATOR) as client:
        yield client


@pytest.fixture
async def anybody(plane: DataPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client() as client:
        yield client


async def test_what_an_operator_pushes_anybody_reads(
    plane: DataPlane, operator: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    digest = await push_blob(operator, REPOSITORY, CONTENT)
    got = await anybody.get(f"/v2/{REPOSITORY}/blobs/{digest}")
    assert got.content == CONTENT
    assert got.headers["Docker-Content-Digest"] == digest
    assert got.headers["ETag"] == f'"{digest}"'
    head = await anybody.head(f"/v2/{REPOSITORY}/blobs/{digest}")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(CONTENT)))
    assert plane.blobs.has(digest)
    up = plane.metrics.transferred_bytes.labels("up", "cubes")._value.get()
    down = plane.metrics.transferred_bytes.labels("down", "cubes")._value.get()
    assert (up, down) == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=2097151-", 2097151, 2097152),
        ("bytes=-5", 2097147, 2097152),
        ("bytes=-99999999", 0, 2097152),
        ("bytes=1000000-99999999", 1000000, 2097152),
    ],
)
async def test_a_range_gives_that_part(tmp_path: Path, tls: bool, asked: str, start: int, end: int) -> None:
    async with running(tmp_path, tls=tls) as plane, plane.client(OPERATOR) as client:
        digest = await push_blob(client, REPOSITORY, CONTENT)
        got = await client.get(f"/v2/{REPOSITORY}/blobs/{digest}", headers={"Range": asked})
        assert got.status_code == 206
        assert got.content == CONTENT[start:end]
        assert got.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=", "bytes=-", "lines=1-2", "bytes=0-1,5-6", "bytes=a-b"])
async def test_a_range_that_means_nothing_gives_the_whole(operator: httpx.AsyncClient, asked: str) -> None:
    digest = await push_blob(operator, REPOSITORY, b"0123456789")
    got = await operator.get(f"/v2/{REPOSITORY}/blobs/{digest}", headers={"Range": asked})
    assert (got.status_code, got.content) == (200, b"0123456789")


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-12", "bytes=99999999999-", "bytes=-0"])
async def test_a_range_behind_the_end_is_416(operator: httpx.AsyncClient, asked: str) -> None:
    digest = await push_blob(operator, REPOSITORY, b"0123456789")
    got = await operator.get(f"/v2/{REPOSITORY}/blobs/{digest}", headers={"Range": asked})
    assert got.status_code == 416
    assert got.headers["Content-Range"] == "bytes */10"


async def test_a_copy_that_is_known_is_not_sent_again(operator: httpx.AsyncClient) -> None:
    digest = await push_blob(operator, REPOSITORY, CONTENT)
    got = await operator.get(f"/v2/{REPOSITORY}/blobs/{digest}", headers={"If-None-Match": f'"{digest}"'})
    assert (got.status_code, got.content) == (304, b"")


async def test_a_range_of_another_version_gives_the_whole(operator: httpx.AsyncClient) -> None:
    digest = await push_blob(operator, REPOSITORY, b"0123456789")
    headers = {"Range": "bytes=5-", "If-Range": f'"{digest_of(b"old")}"'}
    got = await operator.get(f"/v2/{REPOSITORY}/blobs/{digest}", headers=headers)
    assert (got.status_code, got.content) == (200, b"0123456789")


async def test_an_empty_blob_is_a_blob(operator: httpx.AsyncClient) -> None:
    digest = await push_blob(operator, REPOSITORY, b"")
    got = await operator.get(f"/v2/{REPOSITORY}/blobs/{digest}")
    assert (got.status_code, got.content) == (200, b"")


async def test_a_whole_blob_may_come_in_one_request(operator: httpx.AsyncClient) -> None:
    begin, digest = f"/v2/{REPOSITORY}/blobs/uploads/", digest_of(CONTENT)
    done = await operator.post(begin, params={"digest": digest}, content=CONTENT)
    assert (done.status_code, done.headers["Location"]) == (201, f"/v2/{REPOSITORY}/blobs/{digest}")
    again = await operator.post(begin, params={"digest": digest}, content=CONTENT)
    assert again.status_code == 201
    assert (await operator.get(done.headers["Location"])).content == CONTENT


async def test_the_last_piece_may_come_with_the_end(operator: httpx.AsyncClient) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
    half = len(CONTENT) // 2
    first = {"Content-Range": f"0-{half - 1}"}
    sent = await operator.patch(begun.headers["Location"], content=CONTENT[:half], headers=first)
    assert sent.headers["Range"] == f"0-{half - 1}"
    second = {"Content-Range": f"{half}-{len(CONTENT) - 1}"}
    done = await operator.put(
        sent.headers["Location"], params={"digest": digest_of(CONTENT)}, content=CONTENT[half:], headers=second
    )
    assert done.status_code == 201


async def test_a_blob_of_another_repository_is_mounted_without_sending_it(operator: httpx.AsyncClient) -> None:
    digest = await push_blob(operator, REPOSITORY, CONTENT)
    assert (await operator.get(f"/v2/docs/other/blobs/{digest}")).status_code == 404
    mounted = await operator.post("/v2/docs/other/blobs/uploads/", params={"mount": digest, "from": REPOSITORY})
    assert mounted.status_code == 201
    assert (await operator.get(f"/v2/docs/other/blobs/{digest}")).content == CONTENT


async def test_a_mount_of_what_is_not_there_opens_an_upload(operator: httpx.AsyncClient) -> None:
    answer = await operator.post(
        "/v2/docs/other/blobs/uploads/", params={"mount": digest_of(b"absent"), "from": REPOSITORY}
    )
    assert answer.status_code == 202
    assert "/blobs/uploads/" in answer.headers["Location"]


async def test_an_upload_can_be_asked_about_and_cancelled(plane: DataPlane, operator: httpx.AsyncClient) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
    location = begun.headers["Location"]
    await operator.patch(location, content=CONTENT[:1000])
    asked = await operator.get(location)
    assert (asked.status_code, asked.headers["Range"]) == (204, "0-999")
    assert (await operator.delete(location)).status_code == 204
    assert error_of(await operator.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert list((plane.folder / "partials").iterdir()) == []


async def test_bytes_that_do_not_follow_are_416_and_not_taken(operator: httpx.AsyncClient) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
    location = begun.headers["Location"]
    await operator.patch(location, content=b"0123456789")
    for wrong in ("0-4", "11-15"):
        answer = await operator.patch(location, content=b"01234", headers={"Content-Range": wrong})
        assert error_of(answer) == (416, "BLOB_UPLOAD_INVALID")
        assert (answer.headers["Range"], answer.headers["Location"]) == ("0-9", location)


@pytest.mark.parametrize("header", ["5-4", "0-9", "x-y", "-5", "0-", "0-99999999999999999999999"])
async def test_a_content_range_that_does_not_fit_is_refused(operator: httpx.AsyncClient, header: str) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
    answer = await operator.patch(begun.headers["Location"], content=b"01234", headers={"Content-Range": header})
    assert answer.status_code == 400


async def test_a_wrong_digest_is_refused_and_its_bytes_are_gone(
    plane: DataPlane, operator: httpx.AsyncClient
) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
    await operator.patch(begun.headers["Location"], content=CONTENT)
    done = await operator.put(begun.headers["Location"], params={"digest": digest_of(b"other")})
    assert error_of(done) == (400, "DIGEST_INVALID")
    assert (await operator.get(begun.headers["Location"])).status_code == 404
    assert not plane.blobs.has(digest_of(CONTENT))
    assert not plane.blobs.has(digest_of(b"other"))
    assert list((plane.folder / "partials").iterdir()) == []


async def test_finishing_twice_gives_the_same_answer(operator: httpx.AsyncClient) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
    await operator.patch(begun.headers["Location"], content=CONTENT)
    for _ in range(2):
        done = await operator.put(begun.headers["Location"], params={"digest": digest_of(CONTENT)})
        assert done.status_code == 201


async def test_more_than_is_allowed_is_refused_before_it_is_read(
    plane: DataPlane, operator: httpx.AsyncClient
) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")
    answer = await operator.patch(begun.headers["Location"], content=bytes((16 << 20) + 1))
    assert error_of(answer) == (413, "SIZE_INVALID")
    assert plane.metrics.transferred_bytes.labels("up", "cubes")._value.get() == 0
    assert list((plane.folder / "partials").iterdir()) == []


async def test_more_than_is_allowed_without_a_length_is_refused_on_the_way(
    plane: DataPlane, operator: httpx.AsyncClient
) -> None:
    begun = await operator.post(f"/v2/{REPOSITORY}/blobs/uploads/")

    async def body() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield bytes(1 << 20)

    answer = await operator.patch(begun.headers["Location"], content=body())
    assert error_of(answer) == (413, "SIZE_INVALID")
    assert list((plane.folder / "partials").iterdir()) == []


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        (None, 401, "UNAUTHORIZED"),
        (EXPIRED, 401, "UNAUTHORIZED"),
        ("bad", 401, "UNAUTHORIZED"),
        (VOLUNTEER, 403, "DENIED"),
    ],
)
async def test_only_operators_push(plane: DataPlane, token: str | None, status: int, code: str) -> None:
    async with plane.client(token) as client:
        for repository in (REPOSITORY, "models/x", "sources/x"):
            assert error_of(await client.post(f"/v2/{repository}/blobs/uploads/")) == (status, code)
            answer = await push_manifest(client, repository, "latest", b"{}")
            assert error_of(answer) == (status, code)


async def test_nobody_pushes_into_what_is_the_grids_own(operator: httpx.AsyncClient) -> None:
    for repository in ("grid/inputs", "grid/outputs/lease1", "grid/other", "grid"):
        assert error_of(await operator.post(f"/v2/{repository}/blobs/uploads/")) == (403, "DENIED")


async def test_sources_are_read_by_operators_only(plane: DataPlane, operator: httpx.AsyncClient) -> None:
    digest = await push_blob(operator, "sources/manual", b"secret text")
    assert (await operator.get(f"/v2/sources/manual/blobs/{digest}")).content == b"secret text"
    for token, status in ((None, 401), (VOLUNTEER, 403)):
        async with plane.client(token) as client:
            assert (await client.get(f"/v2/sources/manual/blobs/{digest}")).status_code == status
    # Knowing the digest, which published cubes tell, opens no other door to it.
    async with plane.client(VOLUNTEER) as client:
        assert (await client.get(f"/v2/grid/inputs/blobs/{digest}")).status_code == 404
        assert (await client.get(f"/v2/{REPOSITORY}/blobs/{digest}")).status_code == 404
        mounting = {"mount": digest, "from": "sources/manual"}
        assert (await client.post(f"/v2/{REPOSITORY}/blobs/uploads/", params=mounting)).status_code == 403


async def test_inputs_are_read_by_volunteers(plane: DataPlane) -> None:
    digest = plane.blobs.put_bytes(b"tokens of a unit")
    async with plane.client(VOLUNTEER) as client:
        assert (await client.get(f"/v2/grid/inputs/blobs/{digest}")).content == b"tokens of a unit"
    async with plane.client() as client:
        assert error_of(await client.get(f"/v2/grid/inputs/blobs/{digest}")) == (401, "UNAUTHORIZED")


async def test_another_ones_upload_is_unknown(plane: DataPlane) -> None:
    content = b"kv" * 1000
    path = plane.book.order(content)
    async with plane.client(VOLUNTEER) as client, plane.client(STRANGER) as stranger:
        location = (await client.post(path)).headers["Location"]
        for answer in (
            await stranger.get(location),
            await stranger.patch(location, content=content),
            await stranger.put(location, params={"digest": digest_of(content)}),
            await stranger.delete(location),
        ):
            assert error_of(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert (await client.get(location)).status_code == 204


@pytest.mark.parametrize(
    "path",
    [
        "/v2/..%2f..%2fetc/blobs/{digest}",
        "/v2/a/../../etc/blobs/{digest}",
        "/v2/A/blobs/{digest}",
        "/v2/a%00b/blobs/{digest}",
        "/v2/" + "a" * 300 + "/blobs/{digest}",
        "/v2/a//b/blobs/{digest}",
        "/v2/docs/one/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd",
        "/v2/docs/one/blobs/sha256:%2e%2e",
        "/v2/docs/one/blobs/md5:00",
        "/v2/docs/one/blobs/uploads/..%2f..%2fmemgrid.db",
        "/v2/docs/one/manifests/..%2f..%2fmemgrid.db",
        "/v2/docs/one/manifests/sha256:%2e%2e%2fx",
    ],
)
async def test_no_name_leads_out_of_the_store(operator: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = await operator.request(method, path.format(digest=digest_of(b"")), content=b"x")
        assert 400 <= answer.status_code < 500
        assert answer.json()["errors"]


async def test_deleting_needs_an_operator(operator: httpx.AsyncClient, anybody: httpx.AsyncClient) -> None:
    config = b"{}"
    await push_blob(operator, REPOSITORY, config)
    manifest = manifest_of(config, descriptor(config))
    assert (await push_manifest(operator, REPOSITORY, "1.0", manifest)).status_code == 201
    path = f"/v2/{REPOSITORY}/manifests/{digest_of(manifest)}"
    assert (await anybody.delete(path)).status_code == 401
    assert (await operator.delete(path)).status_code == 202
    assert (await anybody.get(path)).status_code == 404
    assert (await anybody.get(f"/v2/{REPOSITORY}/manifests/1.0")).status_code == 404
