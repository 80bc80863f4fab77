"""The content store keeps what it was given, once, under its digest, and nothing else."""

from __future__ import annotations

import errno
import os
import threading
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid.digest import Digest, digest_of
from memgrid.errors import InvalidError, UnknownIdError
from memgrid_coordinator.store.blobs import BlobStore
from memgrid_coordinator.store.partials import PartialStore, Upload

CONTENT = b"some tokens" * 1000


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_content_is_found_under_its_digest(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.put_bytes(CONTENT)
    hexadecimal = digest_of(CONTENT).removeprefix("sha256:")
    assert blobs.path_of(digest) == tmp_path / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal
    assert blobs.read_bytes(digest) == CONTENT
    assert blobs.size_of(digest) == len(CONTENT)


def test_the_same_content_twice_is_one_file(blobs: BlobStore, tmp_path: Path) -> None:
    other = tmp_path / "again"
    other.write_bytes(CONTENT)
    blobs.put_bytes(CONTENT)
    blobs.put_bytes(CONTENT)
    blobs.adopt(other, digest_of(CONTENT))
    assert not other.exists()
    assert len(files_in(tmp_path / "blobs")) == 1


def test_content_can_not_be_written_through_the_store(blobs: BlobStore) -> None:
    digest = blobs.put_bytes(CONTENT)
    assert blobs.path_of(digest).stat().st_mode & 0o222 == 0


@pytest.mark.parametrize(
    "name",
    ["", "sha256:", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 64 + "\n"],
)
def test_a_name_that_is_no_digest_is_refused(blobs: BlobStore, name: str) -> None:
    with pytest.raises(InvalidError):
        blobs.path_of(Digest(name))


def test_absent_content_is_an_unknown_id(blobs: BlobStore, tmp_path: Path) -> None:
    absent = digest_of(b"absent")
    assert not blobs.has(absent)
    for use in (blobs.size_of, blobs.read_bytes, lambda digest: blobs.link(digest, tmp_path / "link")):
        with pytest.raises(UnknownIdError, match=absent):
            use(absent)


def test_a_file_of_another_disk_is_adopted_by_copying(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "elsewhere"
    source.write_bytes(CONTENT)
    rename = Path.replace

    def refuse_across(path: Path, target: Path) -> Path:
        if path == source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", refuse_across)
    blobs.adopt(source, digest_of(CONTENT))
    assert blobs.read_bytes(digest_of(CONTENT)) == CONTENT
    assert not source.exists()
    assert len(files_in(tmp_path / "blobs")) == 1


def test_a_link_shares_the_bytes(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.put_bytes(CONTENT)
    blobs.link(digest, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").samefile(blobs.path_of(digest))


def test_what_a_killed_process_left_is_cleared(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.put_bytes(CONTENT)
    (tmp_path / "blobs" / "tmp" / "half").write_bytes(CONTENT[:10])
    assert blobs.clear_temporary() == 1
    assert files_in(tmp_path / "blobs") == [blobs.path_of(digest)]


def begin(partials: PartialStore, upload_id: str = "0" * 32) -> Upload:
    upload = Upload(
        upload_id=upload_id,
        owner="operator",
        repository="docs/one",
        limit_bytes=1 << 20,
        expected=digest_of(CONTENT),
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    partials.begin(upload)
    return upload


def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    before = PartialStore(tmp_path)
    upload = begin(before)
    before.open(upload.upload_id).append(CONTENT[:100], 0)
    after = PartialStore(tmp_path)
    assert list(after.load()) == [upload]
    partial = after.open(upload.upload_id)
    assert partial.size_bytes == 100
    assert partial.append(CONTENT[100:], 100)
    assert partial.seal() == digest_of(CONTENT)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, len(CONTENT)), max_size=8), restart_at=st.integers(0, 8))
def test_pieces_of_any_size_make_the_same_digest(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], restart_at: int
) -> None:
    partials = PartialStore(tmp_path_factory.mktemp("partials"))
    partial = partials.open(begin(partials).upload_id)
    edges = [0, *sorted(cuts), len(CONTENT)]
    for index, (start, end) in enumerate(pairwise(edges)):
        if index == restart_at:
            partial = partials.open("0" * 32)
        assert partial.append(CONTENT[start:end], start)
    assert partial.seal() == digest_of(CONTENT)
    assert partial.path.read_bytes() == CONTENT


def test_bytes_at_a_wrong_offset_are_not_written(tmp_path: Path) -> None:
    partials = PartialStore(tmp_path)
    partial = partials.open(begin(partials).upload_id)
    assert partial.append(b"abc", 0)
    assert not partial.append(b"abc", 0)
    assert not partial.append(b"abc", 4)
    assert partial.size_bytes == 3


def test_of_two_writers_at_one_offset_one_wins(tmp_path: Path) -> None:
    partials = PartialStore(tmp_path)
    partial = partials.open(begin(partials).upload_id)
    won: list[bytes] = []

    def write(letter: bytes) -> None:
        if partial.append(letter * 100_000, 0):
            won.append(letter)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert partial.seal() == digest_of(won[0] * 100_000)
    assert partial.path.read_bytes() == won[0] * 100_000


def test_nothing_is_added_after_the_digest_was_taken(tmp_path: Path) -> None:
    partials = PartialStore(tmp_path)
    partial = partials.open(begin(partials).upload_id)
    partial.append(b"abc", 0)
    assert partial.seal() == digest_of(b"abc")
    with pytest.raises(UnknownIdError):
        partial.append(b"d", 3)
    assert partial.seal() == digest_of(b"abc")


def test_remains_of_uploads_that_can_not_go_on_are_removed(tmp_path: Path) -> None:
    partials = PartialStore(tmp_path)
    upload = begin(partials)
    (tmp_path / ("1" * 32 + ".json")).write_text("{}")
    (tmp_path / ("2" * 32 + ".part")).write_bytes(b"x")
    (tmp_path / ("3" * 32 + ".tmp")).write_bytes(b"{")
    assert list(partials.load()) == [upload]
    assert len(files_in(tmp_path)) == 2
    partials.remove(upload.upload_id)
    partials.remove(upload.upload_id)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("upload_id", ["", "../../etc/passwd", "0" * 31, "0" * 32 + "/", "G" * 32])
def test_an_upload_id_from_outside_names_no_path(tmp_path: Path, upload_id: str) -> None:
    with pytest.raises(UnknownIdError):
        PartialStore(tmp_path).open(upload_id)
