"""What is done of a unit travels as one file, and comes back only as what a unit of its kind commits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from memgrid.digest import digest_of_file
from memgrid.distill.model import load_model
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.errors import InvalidError
from memgrid.kinds.registry import kind_of
from memgrid.specs import unit_key_of
from memgrid.units import ComputeDtype
from memgrid_volunteer.kept import arrive, place_of, share_kept
from memgrid_volunteer.kinds.committed import COMMITTED_FILE, Checkpoint
from memgrid_volunteer.numerics import make_deterministic
from memgrid_volunteer.packing import PACKED_FORMAT, Packed, pack, packed_bytes, unpack
from tests.half_done import CPU, KINDS, Cut, Cutting, make_unit
from tests.studies import Studied, make_studied
from tests.training import make_spec

SPEC = make_spec(segment_steps=1)
CONTENT = SPEC.to_bytes()


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    make_deterministic()
    return make_studied(tmp_path_factory.mktemp("half") / "tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_another_host_goes_on_with_it_to_the_same_bytes(kind: str, grid: Studied, tmp_path: Path) -> None:
    calm, whole = make_unit(kind, grid, tmp_path / "calm"), Cutting()
    calm.run(whole)
    unit = make_unit(kind, grid, tmp_path / "unit")
    at = round(0.9 * whole.rests)
    with pytest.raises(Cut):
        unit.run(Cutting(at))
    spec = unit.spec.to_bytes()
    packed = pack(unit.job.out_dir, spec, tmp_path / "packed")
    geometry = geometry_of_model(load_model(grid.folder, torch.float32, CPU.torch_device))
    assert packed.size_bytes <= kind_of(unit.spec).checkpoint_bytes_max(unit.spec, geometry)
    other, pace = make_unit(kind, grid, tmp_path / "other"), Cutting()
    unpack(packed.path, spec, other.job.out_dir)
    other.run(pace)
    assert other.outputs() == calm.outputs()
    assert pace.rests < whole.rests / 2, "it was computed anew"


def half_done(place: Path, *, done: float = 0.5, state: bytes = b"state") -> Path:
    """A training's folder with a state and its trace."""
    place.mkdir(parents=True)
    (place / "trace.json").write_bytes(b"[]")
    (place / "sketch.safetensors").write_bytes(b"not for going on")
    dtype = ComputeDtype.FLOAT32
    checkpoint = Checkpoint(place, unit_key_of(CONTENT), wanted=dtype, resolved=dtype)
    checkpoint.add("state-0001.safetensors", state, 30.0, done=done)
    return place


def packed_in(folder: Path, **changed: Any) -> Packed:
    return pack(half_done(folder / "place", **changed), CONTENT, folder / "packed")


def test_only_what_going_on_needs_is_packed(tmp_path: Path) -> None:
    packed = packed_in(tmp_path)
    assert set(load_file(packed.path)) == {COMMITTED_FILE, "trace.json", "state-0001.safetensors"}
    assert packed.digest == digest_of_file(packed.path) and packed.size_bytes == packed.path.stat().st_size
    assert 0 < packed.size_bytes - packed_bytes(tmp_path / "place", CONTENT) < 1000
    line = unpack(packed.path, CONTENT, tmp_path / "there")
    assert (line.done, line.compute_s) == (0.5, 30.0) == (packed.line.done, packed.line.compute_s)
    assert (tmp_path / "there" / "state-0001.safetensors").read_bytes() == b"state"


def test_equal_states_are_packed_to_equal_bytes(tmp_path: Path) -> None:
    assert packed_in(tmp_path / "one").digest == packed_in(tmp_path / "other").digest


@pytest.mark.parametrize("what", ["nothing", "a link", "no state"])
def test_what_is_not_whole_is_not_packed(what: str, tmp_path: Path) -> None:
    place = half_done(tmp_path / "place")
    state = place / "state-0001.safetensors"
    match what:
        case "nothing":
            (place / COMMITTED_FILE).unlink()
        case "a link":
            state.rename(tmp_path / "elsewhere")
            state.symlink_to(tmp_path / "elsewhere")
        case _:
            state.unlink()
    with pytest.raises(InvalidError):
        pack(place, CONTENT, tmp_path / "packed")
    assert not list(tmp_path.glob("packed*"))


Change = Callable[[dict[str, Any], dict[str, str]], None]
ATTACKS: dict[str, Change] = {
    "a way out": lambda files, meta: files.update({"../../volunteer.key": files.pop("trace.json")}),
    "an absolute way": lambda files, meta: files.update({"/proc/key": files.pop("trace.json")}),
    "a foreign name": lambda files, meta: files.update({".bashrc": files.pop("trace.json")}),
    "another kind's file": lambda files, meta: files.update({"kv.safetensors": files.pop("trace.json")}),
    "a part with a tail": lambda files, meta: files.update({"part-0001.safetensors.sh": files.pop("trace.json")}),
    "no line": lambda files, meta: files.pop(COMMITTED_FILE),
    "numbers": lambda files, meta: files.update({"trace.json": np.zeros(2, dtype=np.float32)}),
    "a table": lambda files, meta: files.update({"trace.json": np.zeros((2, 2), dtype=np.uint8)}),
    "another unit": lambda files, meta: meta.update(unit="0" * 64),
    "another format": lambda files, meta: meta.update(format="memgrid.kv.v1"),
    "another unit's line": lambda files, meta: files.update({COMMITTED_FILE: line_of(files, unit="0" * 64)}),
    "another release": lambda files, meta: files.update({COMMITTED_FILE: line_of(files, version="0.0.1")}),
    "more than all": lambda files, meta: files.update({COMMITTED_FILE: line_of(files, done=2.0)}),
    "no seconds": lambda files, meta: files.update({COMMITTED_FILE: line_of(files, compute_s=float("nan"))}),
}


def line_of(files: dict[str, Any], **changed: Any) -> Any:
    line = {**json.loads(files[COMMITTED_FILE].tobytes()), **changed}
    return np.frombuffer(json.dumps(line).encode(), dtype=np.uint8)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_unit_of_this_kind_does_not_commit_is_not_unpacked(attack: str, tmp_path: Path) -> None:
    files = dict(load_file(packed_in(tmp_path).path))
    meta = {"format": PACKED_FORMAT, "unit": str(unit_key_of(CONTENT))}
    ATTACKS[attack](files, meta)
    bad = tmp_path / "bad"
    save_file(files, bad, metadata=meta)
    before = {path for path in tmp_path.rglob("*") if path != bad}
    with pytest.raises(InvalidError):
        unpack(bad, CONTENT, tmp_path / "there" / "place")
    after = {path for path in tmp_path.rglob("*") if path not in (bad, tmp_path / "there")}
    assert after == before, "something was written"


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 900), flipped=st.integers(0, 900), value=st.integers(1, 255))
def test_damaged_files_are_unpacked_or_refused_and_nothing_worse(
    cut: int, flipped: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(packed_in(folder).path.read_bytes())
    content[flipped % len(content)] ^= value
    bad = folder / "bad"
    bad.write_bytes(content if cut > len(content) else content[: cut % len(content)] if cut % 2 else content)
    try:
        unpack(bad, CONTENT, folder / "there")
    except InvalidError:
        assert not (folder / "there").exists()
        return
    assert {path.name for path in (folder / "there").iterdir()} <= {COMMITTED_FILE, "trace.json", *STATES}


STATES = {"state.safetensors", *(f"state-{number:04d}.safetensors" for number in range(1, SPEC.segments))}


@pytest.mark.parametrize(
    ("here", "there", "left"), [(None, 0.5, 0.5), (0.3, 0.5, 0.5), (0.7, 0.5, 0.7), (0.5, 0.5, 0.5)]
)
def test_the_further_of_two_is_kept(here: float | None, there: float, left: float, tmp_path: Path) -> None:
    key = unit_key_of(CONTENT)
    if here is not None:
        half_done(place_of(key, tmp_path), done=here, state=b"ours")
    packed = packed_in(tmp_path / "there", done=there, state=b"theirs")
    assert arrive(packed.path, CONTENT, tmp_path) == left
    assert share_kept(key, tmp_path) == left
    expected = b"theirs" if here is None or here < there else b"ours"
    assert (place_of(key, tmp_path) / "state-0001.safetensors").read_bytes() == expected
    assert not list((tmp_path / "arriving").iterdir())


def test_what_is_none_leaves_what_is_here(tmp_path: Path) -> None:
    key = unit_key_of(CONTENT)
    half_done(place_of(key, tmp_path), done=0.3)
    (tmp_path / "bad").write_bytes(b"\0" * 100)
    with pytest.raises(InvalidError):
        arrive(tmp_path / "bad", CONTENT, tmp_path)
    assert share_kept(key, tmp_path) == 0.3
