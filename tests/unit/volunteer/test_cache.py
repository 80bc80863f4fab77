"""The cache stays within its limit and never lets go of what is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memgrid.cube.identity import model_files
from memgrid.digest import Digest, digest_of
from memgrid.errors import DigestMismatchError, InvalidError, TooLargeError
from memgrid.units import BlobRef, ModelFiles
from memgrid_volunteer.cache import BlobCache


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache", limit_bytes=100)


def put(cache: BlobCache, content: bytes, *, used_at: int = 0) -> Digest:
    digest = digest_of(content)
    cache.make_room(len(content))
    cache.partial_path(digest).write_bytes(content)
    path = cache.adopt(cache.partial_path(digest), digest)
    os.utime(path, (used_at, used_at))
    return digest


def test_what_was_used_longest_ago_goes_first(cache: BlobCache) -> None:
    first, second = put(cache, b"a" * 40, used_at=1), put(cache, b"b" * 40, used_at=2)
    assert cache.has(first, 40)  # now the more recently used one
    put(cache, b"c" * 40)
    assert cache.has(first, 40) and not cache.has(second, 40)


def test_what_is_in_use_stays(cache: BlobCache) -> None:
    first, second = put(cache, b"a" * 40, used_at=1), put(cache, b"b" * 40, used_at=2)
    with cache.pinned([first]):
        put(cache, b"c" * 40)
        assert cache.has(first, 40) and not cache.has(second, 40)
        with pytest.raises(TooLargeError, match="do not fit"):
            cache.make_room(70)
    cache.make_room(100)
    assert not cache.has(first, 40)


def test_two_users_of_a_blob_both_have_to_let_go(cache: BlobCache) -> None:
    digest = put(cache, b"a" * 90)
    with cache.pinned([digest]):
        with cache.pinned([digest]):
            pass
        with pytest.raises(TooLargeError):
            cache.make_room(50)


def test_other_bytes_than_the_address_says_are_deleted(cache: BlobCache) -> None:
    digest = digest_of(b"right")
    cache.partial_path(digest).write_bytes(b"wrong")
    with pytest.raises(DigestMismatchError):
        cache.adopt(cache.partial_path(digest), digest)
    assert cache.partial_bytes(digest) == 0 and not cache.has(digest, 5)


def test_a_file_that_lost_its_bytes_is_not_there(cache: BlobCache) -> None:
    digest = put(cache, b"a" * 40)
    cache.path_of(digest).write_bytes(b"")
    assert not cache.has(digest, 40)


def model_of(cache: BlobCache, folder: Path) -> ModelFiles:
    files = model_files(folder)
    refs = tuple(
        BlobRef(name=file.name, digest=put(cache, file.read_bytes()), size_bytes=file.stat().st_size)
        for file in files
    )
    return ModelFiles(digest=digest_of(b"tiny"), files=refs)


def test_a_model_folder_shares_its_bytes_with_the_blobs_and_goes_with_them(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    cache = BlobCache(tmp_path / "cache", limit_bytes=10_000_000)
    model = model_of(cache, tiny_model_folder)
    folder = cache.model_folder(model)
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in model.files)
    weights = next(file for file in model.files if file.name == "model.safetensors")
    assert (folder / "model.safetensors").samefile(cache.path_of(weights.digest))
    assert cache.model_folder(model) == folder
    cache.make_room(10_000_000)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../x.json", "a/b.json", ".hidden.json", "model.bin", "code.py", "x.json\n", ""])
def test_a_model_file_with_a_wrong_name_is_refused(cache: BlobCache, name: str) -> None:
    digest = put(cache, b"x")
    model = ModelFiles(digest=digest_of(b"m"), files=(BlobRef(name=name, digest=digest, size_bytes=1),))
    with pytest.raises(InvalidError, match="may not be named"):
        cache.model_folder(model)
    assert not cache.models()


def test_what_one_grid_says_of_a_model_is_not_believed_for_another(cache: BlobCache) -> None:
    ours, theirs = (
        ModelFiles(
            digest=digest_of(b"m"), files=(BlobRef(name="config.json", digest=put(cache, content), size_bytes=6),)
        )
        for content in (b"honest", b"forged")
    )
    assert (cache.model_folder(theirs) / "config.json").read_bytes() == b"forged"
    assert (cache.model_folder(ours) / "config.json").read_bytes() == b"honest"
    assert cache.models() == {digest_of(b"m")}
    cache.recheck([], digest_of(b"m"))
    assert not cache.models()
