"""The local cache keeps each content once, forgets what is unused longest, and survives other processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memgrid.clock import ManualClock
from memgrid.cube.oci import CUBE_ARTIFACT_TYPE, KV_TYPE, Descriptor, OciManifest
from memgrid.digest import Digest, digest_of
from memgrid.errors import DigestMismatchError, InvalidError, TooLargeError
from memgrid.pool.cache import CubeCache, default_cache_folder
from memgrid.pool.reference import Reference

SHARED = b"shared" * 100


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 5, 1, tzinfo=UTC))


@pytest.fixture
def cache(tmp_path: Path, clock: ManualClock) -> CubeCache:
    return CubeCache(tmp_path / "cache", limit_bytes=10_000, clock=clock)


def put_blob(cache: CubeCache, content: bytes) -> Digest:
    digest = digest_of(content)
    with cache.fetching(digest) as partial:
        partial.write_bytes(content)
        cache.adopt(partial, digest)
    return digest


def put(cache: CubeCache, name: str, *contents: bytes) -> Digest:
    """A cube of these files; returns its OCI manifest's digest."""
    config = f"config of {name}".encode()
    oci = OciManifest(
        artifact_type=CUBE_ARTIFACT_TYPE,
        config=Descriptor.of(config, "application/json"),
        layers=tuple(Descriptor.of(content, KV_TYPE, f"kv/{index}") for index, content in enumerate(contents)),
    )
    for content in (config, *contents):
        put_blob(cache, content)
    with cache.staging() as staged:
        cache.make_folder(staged, {layer.title or "": layer.digest for layer in oci.layers})
        digest = digest_of(oci.to_bytes())
        cache.put_cube(staged, digest, oci, name)
    return digest


def test_cube_folder_holds_the_files_without_taking_room_twice(cache: CubeCache) -> None:
    digest = put(cache, "a/b:1", SHARED, b"own")
    found = cache.find(digest)
    assert found is not None
    assert (found.folder / "kv/0").read_bytes() == SHARED
    assert (found.folder / "kv/0").samefile(cache.path_of(digest_of(SHARED)))
    assert found.names == ("a/b:1",)


def test_content_of_two_cubes_is_kept_once(cache: CubeCache) -> None:
    first = put(cache, "a/b:1", SHARED, b"one")
    before = cache.used_bytes()
    second = put(cache, "a/b:2", SHARED, b"two")
    assert cache.used_bytes() - before < len(SHARED)
    assert 0 < cache.remove(first) < len(SHARED)
    found = cache.find(second)
    assert found is not None and (found.folder / "kv/0").read_bytes() == SHARED
    assert cache.remove(second) >= len(SHARED)
    assert cache.used_bytes() == 0 and cache.cubes() == []


def test_blob_with_other_content_is_refused_and_forgotten(cache: CubeCache) -> None:
    digest = digest_of(b"wanted")
    with cache.fetching(digest) as partial:
        partial.write_bytes(b"sent")
        with pytest.raises(DigestMismatchError, match=digest):
            cache.adopt(partial, digest)
        assert not partial.exists()
    assert not cache.has(digest, 6)


def test_longest_unused_goes_first(cache: CubeCache, clock: ManualClock) -> None:
    digests = {}
    for name in ("a/one:1", "a/two:1", "a/three:1"):
        clock.advance(timedelta(minutes=1))
        digests[name] = put(cache, name, name.encode() * 300)
    clock.advance(timedelta(minutes=1))
    cache.touch(digests["a/one:1"], "a/one:latest")
    cache.make_room(4000)
    assert [cube.names for cube in cache.cubes()] == [("a/three:1",), ("a/one:1", "a/one:latest")]
    cache.make_room(9000)
    assert cache.cubes() == []
    with pytest.raises(TooLargeError, match="raise the limit"):
        cache.make_room(10_001)


def test_what_a_coming_cube_shares_is_kept_while_room_is_made(cache: CubeCache) -> None:
    put(cache, "a/one:1", SHARED, b"x" * 8000)
    cache.make_room(9000, keep=frozenset({digest_of(SHARED)}))
    assert cache.cubes() == []
    assert cache.has(digest_of(SHARED), len(SHARED)) and not cache.has(digest_of(b"x" * 8000), 8000)


def test_blobs_of_a_pull_under_way_are_not_dropped(cache: CubeCache) -> None:
    other = CubeCache(cache.folder, limit_bytes=10_000)
    with cache.pulling():
        digest = put_blob(cache, b"half of a cube")
        other.make_room(100)
        assert cache.has(digest, 14)
    other.make_room(100)
    assert not cache.has(digest, 14)


def test_name_means_the_cube_pulled_last_under_it(cache: CubeCache, clock: ManualClock) -> None:
    put(cache, "a/b:latest", b"old")
    clock.advance(timedelta(minutes=1))
    newer = put(cache, "a/b:latest", b"new")
    found = cache.find_name("a/b:latest")
    assert found is not None and found.manifest_digest == newer
    assert cache.find_name("a/b:1") is None


def test_putting_a_cube_twice_changes_nothing(cache: CubeCache) -> None:
    assert put(cache, "a/b:1", b"same") == put(cache, "a/b:1", b"same")
    assert len(cache.cubes()) == 1
    assert not list((cache.folder / "cubes").glob(".staging-*"))


def test_cube_that_fails_half_way_leaves_nothing_in_place(cache: CubeCache) -> None:
    with pytest.raises(FileNotFoundError), cache.staging() as staged:
        cache.make_folder(staged, {"kv/0": digest_of(b"never fetched")})
    assert list((cache.folder / "cubes").iterdir()) == []


def test_damaged_record_is_said_with_what_to_do(cache: CubeCache) -> None:
    digest = put(cache, "a/b:1", b"x")
    next((cache.folder / "cubes").glob("*.json")).write_text("{")
    with pytest.raises(InvalidError, match="remove it"):
        cache.find(digest)


@pytest.mark.parametrize("digest", ["sha256:../../x", "sha256:" + "A" * 64, "md5:" + "a" * 64, ""])
def test_digest_that_is_none_never_becomes_a_path(cache: CubeCache, digest: str) -> None:
    with pytest.raises(InvalidError):
        cache.path_of(Digest(digest))


def test_cache_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMGRID_CACHE", str(tmp_path / "here"))
    assert default_cache_folder() == tmp_path / "here"


@pytest.mark.parametrize(
    ("text", "repository", "tag", "digest"),
    [
        ("peps/pep-0008", "peps/pep-0008", "latest", None),
        ("peps/pep-0008:1.0.0", "peps/pep-0008", "1.0.0", None),
        (f"a/b/c@sha256:{'0' * 64}", "a/b/c", "latest", f"sha256:{'0' * 64}"),
        (f"a/b:v1@sha256:{'0' * 64}", "a/b", "v1", f"sha256:{'0' * 64}"),
    ],
)
def test_reference_is_read_as_people_write_it(text: str, repository: str, tag: str, digest: str | None) -> None:
    found = Reference.parse(text)
    assert (found.repository, found.tag, found.digest) == (repository, tag, digest)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "peps",
        "Peps/x",
        "peps//x",
        "../etc/passwd",
        "a/../b",
        "a/b:",
        "a/b:x y",
        "a/b@sha256:1",
        "a/b@",
        "/a/b",
        "a/b/",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        Reference.parse(text)
