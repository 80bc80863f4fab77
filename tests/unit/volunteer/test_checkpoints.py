"""A unit that was cut off goes on where it was, to the bits of one that was not; what is not its own is dropped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from memgrid.digest import digest_of_file
from memgrid.distill.state import write_whole
from memgrid.units import ComputeDtype, UnitKey
from memgrid_volunteer.kinds.committed import COMMITTED_FILE, PART_NAME, Checkpoint, read_committed
from memgrid_volunteer.kinds.job import Progress
from memgrid_volunteer.numerics import make_deterministic
from tests.half_done import KINDS, Cut, Cutting, Unit, make_unit
from tests.studies import Studied, make_studied

KEY = UnitKey("ab" * 32)
F32, BF16 = ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    make_deterministic()
    return make_studied(tmp_path_factory.mktemp("half") / "tiny")


@pytest.fixture(scope="module")
def calm(grid: Studied, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, bytes], int]]:
    """What each kind's unit gives when nothing comes between, and how often it rests."""
    found = {}
    for kind in KINDS:
        unit, pace = make_unit(kind, grid, tmp_path_factory.mktemp("calm") / kind), Cutting()
        unit.run(pace)
        assert unit.parts() == [], "parts are no part of a result"
        found[kind] = (unit.outputs(), pace.rests)
    return found


Calm = dict[str, tuple[dict[str, bytes], int]]


def cut_off(unit: Unit, at: int) -> None:
    with pytest.raises(Cut):
        unit.run(Cutting(at))


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_and_gone_on_with_gives_the_same_bytes(
    kind: str, share: float, grid: Studied, calm: Calm, tmp_path: Path
) -> None:
    expected, rests = calm[kind]
    unit = make_unit(kind, grid, tmp_path / "unit")
    at = max(2, round(share * rests))
    cut_off(unit, at)
    has_parts = bool(unit.parts())
    line, told, pace = read_committed(unit.job.out_dir, unit.spec.key), list[Progress](), Cutting()
    unit.run(pace, tell=told.append)
    assert unit.outputs() == expected
    assert unit.parts() == []
    if kind == "study":
        # Committed with the questions of a batch and with its answers; it rests after every token.
        assert pace.rests <= rests and (has_parts or share < 0.5)
        assert pace.rests < rests or share < 0.5
    else:
        assert has_parts and pace.rests == rests - at
    if has_parts:
        assert line is not None and 0 < line.done < 1 and told[0].done == pytest.approx(line.done)


@pytest.mark.parametrize("kind", ["study", "train"])
def test_a_unit_may_be_cut_off_again_and_again(kind: str, grid: Studied, calm: Calm, tmp_path: Path) -> None:
    expected, rests = calm[kind]
    unit = make_unit(kind, grid, tmp_path / "unit")
    pace = Cutting(3 * max(1, rests // 6))
    for _ in range(6):
        try:
            unit.run(pace)
            break
        except Cut:
            pace = Cutting(3 * max(1, rests // 6))
    assert unit.outputs() == expected


def test_a_short_unit_writes_nothing_on_the_way(tmp_path: Path) -> None:
    checkpoint = again(tmp_path)
    assert not checkpoint.is_due(19.9) and checkpoint.is_due(20.0)
    assert not checkpoint.is_due(20.0, size_bytes=2 << 30), "what is written no faster than computed again"


@pytest.mark.parametrize("kind", KINDS)
def test_other_threads_may_go_on_with_it(kind: str, grid: Studied, calm: Calm, tmp_path: Path) -> None:
    expected, rests = calm[kind]
    unit = make_unit(kind, grid, tmp_path / "unit")
    cut_off(unit, max(2, round(0.6 * rests)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        unit.run(Cutting())
    finally:
        torch.set_num_threads(before)
    (tmp_path / "expected").mkdir()
    for name, content in expected.items():
        (tmp_path / "expected" / name).write_bytes(content)
        if name.endswith(".safetensors"):
            assert_close(tmp_path / "expected" / name, unit.job.out_dir / name)


def assert_close(one: Path, other: Path) -> None:
    with safe_open(one, framework="pt") as a, safe_open(other, framework="pt") as b:
        assert set(a.keys()) == set(b.keys())
        for name in a.keys():  # noqa: SIM118
            torch.testing.assert_close(a.get_tensor(name), b.get_tensor(name), rtol=1e-2, atol=1e-3)


def rewritten(unit: Unit, change: Callable[[dict[str, Any]], None]) -> None:
    """The line changed, and the digests of the files as they are now: by someone who can write there."""
    path = unit.job.out_dir / COMMITTED_FILE
    line = json.loads(path.read_bytes())
    line["states"] = [[name, digest_of_file(unit.job.out_dir / name)] for name, _ in line["states"]]
    change(line)
    path.write_text(json.dumps(line))


def tensors_changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Unit], None]:
    def spoil(unit: Unit) -> None:
        for name in unit.parts():
            path = unit.job.out_dir / name
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
            save_file(change(load_file(path)), path, metadata=metadata)
        rewritten(unit, lambda line: None)

    return spoil


def truncated(unit: Unit) -> None:
    for name in unit.parts():
        path = unit.job.out_dir / name
        path.write_bytes(path.read_bytes()[:-1])


def truncated_and_signed_off(unit: Unit) -> None:
    truncated(unit)
    rewritten(unit, lambda line: None)


def flipped(unit: Unit) -> None:
    for name in unit.parts():
        path = unit.job.out_dir / name
        content = bytearray(path.read_bytes())
        content[-5] ^= 0x40
        path.write_bytes(content)


def linked(unit: Unit) -> None:
    for name in unit.parts():
        path = unit.job.out_dir / name
        moved = unit.job.out_dir.parent / f"moved-{name}"
        shutil.move(path, moved)
        path.symlink_to(moved)


def pickled(unit: Unit) -> None:
    import pickle

    for name in unit.parts():
        (unit.job.out_dir / name).write_bytes(pickle.dumps(np.zeros(3)))
    rewritten(unit, lambda line: None)


def floats_to(value: float) -> Callable[[Unit], None]:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: np.full_like(tensor, value) if tensor.dtype.kind == "f" else tensor
            for name, tensor in tensors.items()
        }

    return tensors_changed(change)


def otherwise(array: Any) -> Any:
    return array.astype(np.float32 if array.dtype == np.float16 else np.float16)


SPOILT_FILES: dict[str, Callable[[Unit], None]] = {
    "truncated": truncated_and_signed_off,
    "pickled": pickled,
    "NaN": floats_to(float("nan")),
    "a row more": tensors_changed(lambda all_: {name: np.concatenate([each, each]) for name, each in all_.items()}),
    "other dtype": tensors_changed(lambda all_: {name: otherwise(each) for name, each in all_.items()}),
    "other names": tensors_changed(lambda all_: {f"x{name}": each for name, each in all_.items()}),
}
"""With a line that says just these bytes are right: each kind has to look for itself."""
SPOILT_LINES: dict[str, Callable[[Unit], None]] = {
    "truncated": truncated,
    "a bit flipped": flipped,
    "links": linked,
    "another unit": lambda unit: rewritten(unit, lambda line: line.update(unit="0" * 64)),
    "another release": lambda unit: rewritten(unit, lambda line: line.update(version="0.0.1")),
    "more than all": lambda unit: rewritten(unit, lambda line: line.update(done=1.5)),
    "no seconds": lambda unit: rewritten(unit, lambda line: line.update(compute_s=-1)),
    "a way out": lambda unit: rewritten(unit, lambda line: line["states"].insert(0, ["../in/spec.json", "x"])),
    "no line": lambda unit: (unit.job.out_dir / COMMITTED_FILE).unlink(),
    "not JSON": lambda unit: write_whole(unit.job.out_dir / COMMITTED_FILE, b"[" * 100_000),
}


FOR_EVERY_KIND = ("NaN", "a row more", "other names")
QUICK = ("prefill", "evaluate")


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [(kind, spoil) for kind in KINDS for spoil in SPOILT_FILES if kind in QUICK or spoil in FOR_EVERY_KIND],
)
def test_parts_that_are_not_such_as_the_unit_has_are_dropped(
    kind: str, spoil: str, grid: Studied, calm: Calm, tmp_path: Path
) -> None:
    is_dropped(make_unit(kind, grid, tmp_path / "unit"), SPOILT_FILES[spoil], *calm[kind])


@pytest.mark.parametrize("spoil", SPOILT_LINES)
def test_what_the_line_does_not_vouch_for_is_dropped(spoil: str, grid: Studied, calm: Calm, tmp_path: Path) -> None:
    is_dropped(make_unit("prefill", grid, tmp_path / "unit"), SPOILT_LINES[spoil], *calm["prefill"])


def is_dropped(unit: Unit, spoil: Callable[[Unit], None], expected: dict[str, bytes], rests: int) -> None:
    # Before a training's first state, so that there is nothing else to go on from.
    cut_off(unit, 5 if unit.job.kind == "train" else max(2, round(0.6 * rests)))
    assert unit.parts()
    spoil(unit)
    pace = Cutting()
    unit.run(pace)
    assert pace.rests == rests, "it was gone on with"
    assert unit.outputs() == expected
    assert unit.parts() == []


def test_a_unit_goes_on_in_the_dtype_it_began_in(tmp_path: Path) -> None:
    began = Checkpoint(tmp_path, KEY, wanted=ComputeDtype.AUTO, resolved=BF16)
    began.add_part(b"one", 12.0, done=0.5)
    other = Checkpoint(tmp_path, KEY, wanted=ComputeDtype.AUTO, resolved=F32)
    assert other.found is not None and (other.compute_dtype, other.found.compute_s) == (BF16, 12.0)
    asked = Checkpoint(tmp_path, KEY, wanted=F32, resolved=F32)
    assert asked.found is None and asked.compute_dtype is F32


def test_parts_are_added_and_replaced_under_names_of_their_own(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY, wanted=F32, resolved=F32)
    checkpoint.add_part(b"one", 1.0, done=0.5)
    checkpoint.add_part(b"two", 2.0, done=0.5)
    assert [path.read_bytes() for path in again(tmp_path).whole()] == [b"one", b"two"]
    for number in range(3, 9):
        checkpoint.replace_parts([b"a%d" % number, b"b%d" % number], float(number), done=0.5)
        assert [path.read_bytes() for path in again(tmp_path).whole()] == [b"a%d" % number, b"b%d" % number]
    checkpoint.add("state-0001.safetensors", b"state", 9.0, done=0.5)
    assert [path.name for path in again(tmp_path).whole()] == ["state-0001.safetensors"]
    assert not [path for path in tmp_path.iterdir() if PART_NAME.fullmatch(path.name)]


def test_a_disk_that_takes_no_more_stops_nobody(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY, wanted=F32, resolved=F32)
    assert checkpoint.add_part(b"one", 30.0, done=0.5)
    # Whoever runs these tests may be allowed to write anywhere: a folder stands in the way instead.
    (tmp_path / ".part-0002.safetensors.making").mkdir()
    assert not checkpoint.add_part(b"two", 60.0, done=0.5)
    assert not checkpoint.is_due(61.0)
    assert [path.read_bytes() for path in again(tmp_path).whole()] == [b"one"]
    (tmp_path / ".part-0002.safetensors.making").rmdir()
    assert checkpoint.add_part(b"two", 90.0, done=0.5)
    assert [path.read_bytes() for path in again(tmp_path).whole()] == [b"one", b"two"]


def again(folder: Path) -> Checkpoint:
    return Checkpoint(folder, KEY, wanted=F32, resolved=F32)
