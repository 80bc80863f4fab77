"""Content in a bucket behaves like content in a folder, and a whole grid runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from memgrid.digest import Digest, digest_of
from memgrid.errors import DigestMismatchError, InvalidError, UnavailableError, UnknownIdError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.store.blob_places import open_blobs
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.bucket_place import parse_place
from tests.buckets import Bucket, free_port, new_bucket, s3_server
from tests.grids import campaign_of, push_model, run_until_ended, running_coordinator, simulated_hosts, submit

CONTENT = bytes(range(256)) * 40_000  # 10 MB: more than one piece
TEXT = "The valve opens at three bar and closes at two. " * 8


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return new_bucket(endpoint)


def opened(bucket: Bucket, folder: Path, cache_bytes: int = 1 << 30) -> BlobStore:
    return open_blobs(parse_place(bucket.blobs_url), cache=folder, cache_bytes=cache_bytes)


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "folder":
        return BlobStore(tmp_path / "blobs")
    return opened(request.getfixturevalue("bucket"), tmp_path / "cache")


def cached(folder: Path) -> set[str]:
    return {path.name for path in (folder / "sha256").glob("*/*")}


async def test_what_is_put_is_found_and_read(blobs: BlobStore, tmp_path: Path) -> None:
    small = blobs.put_bytes(b"tokens")
    source = tmp_path / "upload"
    source.write_bytes(CONTENT)
    blobs.adopt(source, digest_of(CONTENT))
    assert not source.exists()
    assert blobs.has(small)
    assert blobs.renew(small)
    assert blobs.size_of(digest_of(CONTENT)) == len(CONTENT)
    assert blobs.read_bytes(small) == b"tokens"
    assert blobs.read_piece(digest_of(CONTENT), 250, 12) == CONTENT[250:262]
    assert blobs.read_piece(small, 4, 100) == b"ns"
    assert blobs.read_piece(small, 6, 100) == b""
    async with blobs.at_hand([small, digest_of(CONTENT), digest_of(b"absent")]) as paths:
        assert {digest: path.read_bytes() for digest, path in paths.items()} == {
            small: b"tokens",
            digest_of(CONTENT): CONTENT,
        }
    blobs.link(digest_of(CONTENT), tmp_path / "linked")
    assert (tmp_path / "linked").read_bytes() == CONTENT


def test_what_is_absent_is_an_unknown_id(blobs: BlobStore, tmp_path: Path) -> None:
    absent = digest_of(b"absent")
    assert not blobs.has(absent)
    assert not blobs.renew(absent)
    for use in (blobs.size_of, blobs.read_bytes, lambda digest: blobs.link(digest, tmp_path / "link")):
        with pytest.raises(UnknownIdError, match=absent):
            use(absent)


def test_a_listing_goes_on_where_it_ended(blobs: BlobStore) -> None:
    digests = sorted(blobs.put_bytes(str(number).encode()) for number in range(30))
    seen: list[Digest] = []
    while page := blobs.kept_after(seen[-1] if seen else None, 7):
        seen += [blob.digest for blob in page]
    assert seen == digests
    assert {blob.size_bytes for blob in blobs.kept_after(None, 100)} == {1, 2}


def test_what_was_touched_since_is_not_removed(blobs: BlobStore) -> None:
    digest = blobs.put_bytes(b"old")
    assert blobs.remove(digest, unless_renewed_since=datetime.now(UTC) - timedelta(hours=1)) is None
    assert blobs.has(digest)
    assert blobs.remove(digest, unless_renewed_since=datetime.now(UTC) + timedelta(hours=1)) == 3
    assert not blobs.has(digest)
    assert blobs.kept_after(None, 10) == []


def test_damaged_content_is_out_of_reach(blobs: BlobStore) -> None:
    digest = blobs.put_bytes(b"damaged")
    assert blobs.set_aside_count() == 0
    blobs.set_aside(digest)
    blobs.set_aside(digest)
    assert not blobs.has(digest)
    assert blobs.set_aside_count() == 1
    assert blobs.kept_after(None, 10) == []
    assert blobs.put_bytes(b"damaged") == digest
    assert blobs.has(digest)


async def test_two_coordinators_see_each_others_content(bucket: Bucket, tmp_path: Path) -> None:
    one, other = opened(bucket, tmp_path / "one"), opened(bucket, tmp_path / "other")
    digest = one.put_bytes(CONTENT)
    assert other.has(digest)
    async with other.at_hand([digest]) as paths:
        assert paths[digest].read_bytes() == CONTENT
    assert other.streams(digest) is None
    assert other.remove(digest, unless_renewed_since=datetime.now(UTC) + timedelta(hours=1)) == len(CONTENT)
    assert not one.has(digest)


async def test_the_folder_of_this_machine_stays_within_its_bound(bucket: Bucket, tmp_path: Path) -> None:
    blobs = opened(bucket, tmp_path / "cache", cache_bytes=100)
    digests = [blobs.put_bytes(bytes([number]) * 40) for number in range(4)]
    for digest in digests:
        async with blobs.at_hand([digest]):
            assert digest.removeprefix("sha256:") in cached(tmp_path / "cache")
    assert len(cached(tmp_path / "cache")) == 2
    async with blobs.at_hand(digests) as paths:
        assert len(paths) == 4
        assert all(path.is_file() for path in paths.values()), "what is in use stays, bound or not"
    async with blobs.at_hand([blobs.put_bytes(b"one more")]):
        assert len(cached(tmp_path / "cache")) <= 3


async def test_content_that_the_bucket_has_spoilt_is_never_at_hand(bucket: Bucket, tmp_path: Path) -> None:
    blobs = opened(bucket, tmp_path / "cache")
    digest = blobs.put_bytes(b"good")
    bucket.spoil(digest, b"evil")
    with pytest.raises(DigestMismatchError, match="damaged"):
        async with blobs.at_hand([digest]):
            pass
    with pytest.raises(DigestMismatchError):
        blobs.read_bytes(digest)
    assert cached(tmp_path / "cache") == set()
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


def test_a_bucket_that_is_not_there_is_said_at_the_start(bucket: Bucket, tmp_path: Path) -> None:
    place = parse_place(f"s3://nobody/x?endpoint={bucket.endpoint}")
    with pytest.raises(InvalidError, match="s3://nobody/x: there is no such bucket"):
        open_blobs(place, cache=tmp_path, cache_bytes=1)
    silent = parse_place(f"s3://grid/x?endpoint=http://127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError, match="s3://grid/x does not answer"):
        open_blobs(silent, cache=tmp_path, cache_bytes=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://", "expected a folder or s3://bucket/prefix"),
        ("gs://bucket", "expected a folder or s3://bucket/prefix"),
        ("s3://key:secret@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/x?endpont=http://a", "'endpont'"),
        ("s3://bucket/x?endpoint=minio:9000", "expected http://"),
        ("s3://bucket/x?addressing=no", "path or virtual"),
    ],
)
def test_an_address_that_can_not_be_meant_is_refused(text: str, expected: str) -> None:
    with pytest.raises(InvalidError, match=expected) as raised:
        parse_place(text)
    assert "secret" not in str(raised.value)


@pytest.fixture
async def urls(bucket: Bucket) -> AsyncIterator[dict[str, object]]:
    # So small that every computation and every download goes to the bucket.
    yield {"blobs_url": bucket.blobs_url, "blob_cache_bytes": 1}


async def test_a_whole_grid_runs_on_a_bucket(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry, urls: dict[str, object]
) -> None:
    async with running_coordinator(tmp_path / "data", **urls) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        submission = await submit(coordinator, {"manual.txt": TEXT})
        async with simulated_hosts(endpoint, 2) as hosts:
            await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
        campaign = await campaign_of(coordinator, submission)
        assert campaign.state is CampaignState.COMPLETED
        (document,) = campaign.documents
        await asyncio.to_thread(_pull, endpoint.url, document.cube, tmp_path)
    assert len(cached(tmp_path / "data" / "blob-cache")) < 5, "what the last computation had in hand, and no more"


def _pull(url: str, cube: str, tmp_path: Path) -> None:
    """Every blob of the cube, whole and by range."""
    repository, _, tag = cube.partition(":")
    with httpx.Client(base_url=url, verify=False) as client:
        manifest = client.get(f"/v2/{repository}/manifests/{tag}").json()
        for layer in [manifest["config"], *manifest["layers"]]:
            path = f"/v2/{repository}/blobs/{layer['digest']}"
            whole = client.get(path)
            assert digest_of(whole.content) == layer["digest"]
            part = client.get(path, headers={"Range": "bytes=3-9"})
            assert (part.status_code, part.content) == (206, whole.content[3:10])
