"""Finished work is in the outbox whole, or not at all, and is still there after a restart."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from memgrid.digest import digest_of
from memgrid.errors import InvalidError
from memgrid.specs import AdapterKind, AdapterSpec, PrefillSpec, Schedule, TrainSpec
from memgrid.units import SKETCH_BYTES_MAX, ComputeDtype, LeaseId, LeaseOffer, StoreDtype, UnitKey, WorkFacts
from memgrid_volunteer.outbox import Outbox

FACTS = WorkFacts(
    tokens=3,
    compute_s=1.5,
    device_kind="cpu",
    numerics_class="cpu-x86_64-avx2/torch-2.13.0",
    compute_dtype=ComputeDtype.FLOAT32,
    torch_version="2.13.0",
)


PREFILL = PrefillSpec(
    model=digest_of(b"model"),
    tokens=digest_of(b"tokens"),
    token_count=3,
    start=0,
    parent=None,
    compute_dtype=ComputeDtype.AUTO,
    store_dtype=StoreDtype.BFLOAT16,
)
TRAIN = TrainSpec(
    model=digest_of(b"model"),
    frame=digest_of(b"frame"),
    adapter=AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=4, frozen_tokens=1),
    state=digest_of(b"state"),
    shards=(digest_of(b"shard"),),
    distractors=(),
    distractor_share=0.0,
    first_step=8,
    stop_step=13,
    total_steps=16,
    segment_steps=2,
    batch_rows=1,
    row_tokens=64,
    learning_rate=0.02,
    warmup_steps=0,
    schedule=Schedule.CONSTANT,
    seed=1,
    round=0,
    stream=0,
    streams=1,
    compute_dtype=ComputeDtype.FLOAT32,
)


def offer(lease_id: str = "one", spec: PrefillSpec | TrainSpec = PREFILL) -> LeaseOffer:
    return LeaseOffer(
        lease_id=LeaseId(lease_id),
        fence=4,
        unit_key=UnitKey("ab" * 32),
        spec=spec.to_bytes(),
        model=digest_of(b"model"),
        inputs=(),
        deadline_at=datetime(2026, 1, 1, tzinfo=UTC),
        estimate_s=1,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir()
    return tmp_path / "outbox"


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    made = tmp_path / "work" / "out"
    made.mkdir(parents=True)
    (made / "kv.safetensors").write_bytes(b"numbers")
    (made / "sketch.safetensors").write_bytes(b"sketch")
    return made


def test_what_was_added_is_found_again_after_a_restart(folder: Path, out_dir: Path) -> None:
    added = Outbox(folder).add(offer(), out_dir, FACTS)
    assert added.claim.outputs[0].digest == digest_of(b"numbers")
    assert added.claim.sketch_digest == digest_of(b"sketch") and added.claim.facts == FACTS
    again = Outbox(folder)
    assert again.to_report() == [added] and again.awaiting() == ()
    assert again.to_report()[0].sketch() == b"sketch"


def test_what_was_acknowledged_is_awaited_and_not_reported_again(folder: Path, out_dir: Path) -> None:
    outbox = Outbox(folder)
    outbox.add(offer(), out_dir, FACTS)
    outbox.acknowledge(LeaseId("one"))
    for seen in (outbox, Outbox(folder)):
        assert seen.to_report() == [] and seen.awaiting() == ("one",)


def test_what_was_dropped_is_gone(folder: Path, out_dir: Path) -> None:
    outbox = Outbox(folder)
    outbox.add(offer(), out_dir, FACTS)
    outbox.drop(LeaseId("one"))
    assert outbox.is_empty and not list(folder.iterdir()) and Outbox(folder).is_empty


@pytest.mark.parametrize("missing", ["kv.safetensors", "report.pb"])
def test_a_folder_that_is_not_whole_is_thrown_away(folder: Path, out_dir: Path, missing: str) -> None:
    (Outbox(folder).add(offer(), out_dir, FACTS).folder / missing).unlink()
    assert Outbox(folder).is_empty and not list(folder.iterdir())


def test_a_folder_of_which_the_rename_never_happened_is_thrown_away(folder: Path, out_dir: Path) -> None:
    Outbox(folder).add(offer(), out_dir, FACTS).folder.rename(folder / "making-one")
    assert Outbox(folder).is_empty and not list(folder.iterdir())


@pytest.mark.parametrize("name", ["kv.safetensors", "sketch.safetensors"])
def test_a_missing_output_is_no_result(folder: Path, out_dir: Path, name: str) -> None:
    (out_dir / name).unlink()
    with pytest.raises(InvalidError, match=f"left no {name}"):
        Outbox(folder).add(offer(), out_dir, FACTS)


def test_a_link_to_another_file_is_no_result(folder: Path, out_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "volunteer.key").write_bytes(b"secret")
    (out_dir / "kv.safetensors").unlink()
    (out_dir / "kv.safetensors").symlink_to(tmp_path / "volunteer.key")
    with pytest.raises(InvalidError, match=r"left no kv\.safetensors"):
        Outbox(folder).add(offer(), out_dir, FACTS)


def test_a_sketch_that_no_report_may_bring_is_no_result(folder: Path, out_dir: Path) -> None:
    (out_dir / "sketch.safetensors").write_bytes(b"x" * (SKETCH_BYTES_MAX + 1))
    with pytest.raises(InvalidError, match="too large"):
        Outbox(folder).add(offer(), out_dir, FACTS)


@pytest.mark.parametrize("lease_id", ["..", "a/b", "", "a" * 129, "a\n"])
def test_a_lease_id_is_never_a_path(folder: Path, out_dir: Path, lease_id: str) -> None:
    with pytest.raises(InvalidError, match="lease id"):
        Outbox(folder).add(offer(lease_id), out_dir, FACTS)


def test_all_files_of_a_training_unit_are_reported_the_state_it_ends_with_first(folder: Path, out_dir: Path) -> None:
    names = ["state.safetensors", "trace.json", "state-0001.safetensors", "state-0002.safetensors"]
    for name in [*names, "checkpoint.tmp"]:
        (out_dir / name).write_bytes(name.encode())
    added = Outbox(folder).add(offer(spec=TRAIN), out_dir, FACTS)
    assert [output.name for output in added.claim.outputs] == names
    assert [output.digest for output in added.claim.outputs] == [digest_of(name.encode()) for name in names]
    assert added.output == added.folder / "state.safetensors"
    assert Outbox(folder).to_report() == [added]


def test_work_that_lacks_a_file_after_a_power_cut_is_thrown_away(folder: Path, out_dir: Path) -> None:
    for name in ("state.safetensors", "trace.json", "state-0001.safetensors", "state-0002.safetensors"):
        (out_dir / name).write_bytes(name.encode())
    added = Outbox(folder).add(offer(spec=TRAIN), out_dir, FACTS)
    (added.folder / "state-0002.safetensors").unlink()
    assert Outbox(folder).to_report() == []
