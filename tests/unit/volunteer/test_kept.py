"""Half-done units are kept for the next lease of the same unit, and not for ever."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from memgrid.specs import unit_key_of
from memgrid_volunteer.isolation import Folders
from memgrid_volunteer.kept import KEPT_FOR, KEPT_MAX, forget_old, gather, keep, take_back
from memgrid_volunteer.kinds.committed import COMMITTED_FILE
from tests.training import make_spec

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def lease(work: Path, name: str, seed: int = 1, *, committed: bool = True) -> bytes:
    """A lease's folders as a worker that was cut off leaves it; the spec of its unit."""
    spec = make_spec(seed=seed).to_bytes()
    (work / "in" / name).mkdir(parents=True)
    (work / "out" / name).mkdir(parents=True)
    (work / "in" / name / "spec.json").write_bytes(spec)
    (work / "out" / name / "state-0001.safetensors").write_bytes(b"state")
    if committed:
        (work / "out" / name / COMMITTED_FILE).write_bytes(b"{}")
        os.utime(work / "out" / name / COMMITTED_FILE, (NOW.timestamp(), NOW.timestamp()))
    return spec


def folders(work: Path) -> Folders:
    return Folders(cache=work / "cache", work=work)


def test_the_next_lease_of_a_unit_goes_on_where_the_last_was_cut_off(tmp_path: Path) -> None:
    spec = lease(tmp_path, "first")
    assert keep("first", folders(tmp_path))
    assert not list((tmp_path / "in").iterdir()) and not list((tmp_path / "out").iterdir())
    assert take_back(unit_key_of(spec), spec, tmp_path / "out" / "second", tmp_path)
    assert (tmp_path / "out" / "second" / "state-0001.safetensors").read_bytes() == b"state"
    assert not take_back(unit_key_of(spec), spec, tmp_path / "out" / "third", tmp_path)
    assert list((tmp_path / "out" / "third").iterdir()) == []


def test_another_unit_gets_nothing_of_it(tmp_path: Path) -> None:
    lease(tmp_path, "first", seed=1)
    keep("first", folders(tmp_path))
    other = make_spec(seed=2).to_bytes()
    assert not take_back(unit_key_of(other), other, tmp_path / "out" / "second", tmp_path)


def test_nothing_is_kept_of_a_unit_that_committed_nothing(tmp_path: Path) -> None:
    lease(tmp_path, "first", committed=False)
    assert not keep("first", folders(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.name not in ("in", "out")]


def test_only_files_of_the_unit_come_back(tmp_path: Path) -> None:
    spec = lease(tmp_path, "first")
    out = tmp_path / "out" / "first"
    (out / ".state-0002.safetensors.making").write_bytes(b"half")
    (out / "past").mkdir()
    (out / "past" / "x").write_bytes(b"x")
    secret = tmp_path / "secret"
    secret.write_bytes(b"key")
    (out / "trace.json").symlink_to(secret)
    keep("first", folders(tmp_path))
    take_back(unit_key_of(spec), spec, tmp_path / "out" / "second", tmp_path)
    found = {path.name for path in (tmp_path / "out" / "second").iterdir()}
    assert found == {"state-0001.safetensors", COMMITTED_FILE}
    assert secret.read_bytes() == b"key"


def test_after_a_kill_leases_folders_are_gathered_and_the_rest_is_emptied(tmp_path: Path) -> None:
    spec = lease(tmp_path, "first")
    lease(tmp_path, "second", seed=2, committed=False)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "core").write_bytes(b"")
    assert gather(tmp_path, NOW) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    # The next start finds it still.
    assert gather(tmp_path, NOW) == 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [unit_key_of(spec)]


def test_what_nobody_asks_for_again_goes(tmp_path: Path) -> None:
    for seed in range(KEPT_MAX + 3):
        lease(tmp_path, f"lease-{seed}", seed=seed)
        keep(f"lease-{seed}", folders(tmp_path))
    assert forget_old(tmp_path, NOW) == KEPT_MAX
    assert forget_old(tmp_path, NOW + KEPT_FOR) == KEPT_MAX
    assert forget_old(tmp_path, NOW + KEPT_FOR + timedelta(seconds=1)) == 0
    assert list((tmp_path / "kept").iterdir()) == []


def test_grids_share_nothing_of_a_unit_that_both_have(tmp_path: Path) -> None:
    spec = lease(tmp_path, "b.example-443.first")
    assert gather(tmp_path, NOW) == 1
    # The very same unit, and only the one grid's lease of it goes on.
    (tmp_path / "out").mkdir()
    assert not take_back(unit_key_of(spec), spec, tmp_path / "out" / "first", tmp_path)
    assert not take_back(unit_key_of(spec), spec, tmp_path / "out" / "c.example-443.first", tmp_path)
    assert take_back(unit_key_of(spec), spec, tmp_path / "out" / "b.example-443.second", tmp_path)
