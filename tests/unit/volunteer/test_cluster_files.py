"""Files between machines of a cluster: whatever one says that it has left, nothing else arrives, nor elsewhere."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of
from memgrid.errors import DigestMismatchError, InvalidError
from memgrid.specs import PrefillSpec
from memgrid.units import BlobRef
from memgrid_volunteer.cluster import arriving, pieces
from memgrid_volunteer.cluster.words import PACKED, PIECE_BYTES
from memgrid_volunteer.inputs import Prepared
from memgrid_volunteer.isolation import Folders
from memgrid_volunteer.kept import KEPT_BYTES_MAX
from memgrid_volunteer.kinds.job import Job
from tests.scripted_grid import ScriptedGrid

CACHE = b"a cache"
FORMER = "what was here before"


def blob(name: str, content: bytes = CACHE, size_bytes: int | None = None) -> BlobRef:
    return BlobRef(
        name=name, digest=digest_of(content), size_bytes=len(content) if size_bytes is None else size_bytes
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A unit that was begun here before."""
    grid = ScriptedGrid()
    folders = Folders(cache=tmp_path / "cache", work=tmp_path / "work")
    folders.make()
    job = Job(
        kind=PrefillSpec.kind,
        unit_dir=folders.inputs / "unit",
        model_dir=folders.cache,
        out_dir=folders.outputs / "unit",
    )
    job.out_dir.mkdir()
    (job.out_dir / FORMER).touch()
    offer = grid.offer("unit", 1, 2)
    return Prepared(offer=offer, model=grid.model, job=job, folders=folders, pins=contextlib.ExitStack())


async def bring(prepared: Prepared, wanted: BlobRef, target: Path) -> None:
    """What the machine has under each name is the same few bytes."""
    pieces.write_piece(target, wanted, 0, CACHE)
    pieces.check(target, wanted)


@pytest.mark.parametrize(
    "files",
    [
        [blob("../../volunteer.key")],
        [blob("/proc/volunteer.key")],  # where nobody can write, should the names not be looked at
        [blob("kv.safetensors"), blob("kv.safetensors")],
        [blob("other.safetensors")],
        [blob(PACKED)],
        [blob("kv.safetensors", size_bytes=1 << 50)],
        [blob("kv.safetensors", size_bytes=-1)],
        [blob("kv.safetensors", size_bytes=3)],
    ],
)
async def test_outputs_of_other_names_and_sizes_are_refused(prepared: Prepared, files: list[BlobRef]) -> None:
    with pytest.raises(InvalidError):
        await arriving.outputs(prepared, files, bring)
    assert [path.name for path in prepared.job.out_dir.iterdir()] == [FORMER]


async def test_what_has_another_digest_does_not_arrive(prepared: Prepared) -> None:
    with pytest.raises(DigestMismatchError, match=r"^kv\.safetensors: "):
        await arriving.outputs(prepared, [blob("kv.safetensors", b"another")], bring)
    assert [path.name for path in prepared.job.out_dir.iterdir()] == [FORMER]


async def test_a_link_that_a_worker_lays_leads_nowhere(prepared: Prepared, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (prepared.job.out_dir / "kv.safetensors").symlink_to(secret)
    await arriving.outputs(prepared, [blob("kv.safetensors")], bring)
    assert secret.read_text() == "mine"
    assert {path.name: path.read_bytes() for path in prepared.job.out_dir.iterdir()} == {"kv.safetensors": CACHE}


@pytest.mark.parametrize(
    "packed",
    [blob(PACKED), blob(PACKED, b"another"), blob(PACKED, size_bytes=KEPT_BYTES_MAX + 1), blob("kv.safetensors")],
)
async def test_states_that_are_none_leave_what_was_here(prepared: Prepared, packed: BlobRef) -> None:
    await arriving.states(prepared, [packed], bring)
    assert [path.name for path in prepared.job.out_dir.iterdir()] == [FORMER]


@given(st.integers(0, 3 * PIECE_BYTES))
def test_pieces_cover_a_file_once_and_none_is_larger_than_a_message(size_bytes: int) -> None:
    begins = list(pieces.offsets(size_bytes))
    sizes = [min(PIECE_BYTES, size_bytes - offset) for offset in begins]
    assert sum(sizes) == size_bytes and max(sizes) <= PIECE_BYTES <= 64 << 20
    assert begins == [sum(sizes[:number]) for number in range(len(sizes))]


def test_a_piece_out_of_turn_changes_nothing(tmp_path: Path) -> None:
    file, large = tmp_path / "file", blob("file", size_bytes=PIECE_BYTES + 2)
    with pytest.raises(InvalidError, match="expected 2 bytes at 0 of"):
        pieces.write_piece(file, large, PIECE_BYTES, b"ab")
    assert not pieces.write_piece(file, large, 0, bytes(PIECE_BYTES))
    for offset, piece in ((PIECE_BYTES, b"abc"), (PIECE_BYTES, b"a"), (PIECE_BYTES + 1, b"a"), (-1, b"ab")):
        with pytest.raises(InvalidError):
            pieces.write_piece(file, large, offset, piece)
    assert file.stat().st_size == PIECE_BYTES
    assert pieces.write_piece(file, large, PIECE_BYTES, b"ab")
