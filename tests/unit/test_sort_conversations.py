"""What is scored was never trained on: duplicates leave the training side, by digest, the same way every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memgrid.digest import digest_of_file
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import Shard, conversation_digests, read_shard, select, write_shard
from memgrid.specs import Purpose
from memgrid.units import ReasonCode
from memgrid_coordinator.heavy.made_file import MadeFile
from memgrid_coordinator.heavy.sort_conversations import sort_conversations
from tests.training import random_shard


def written(path: Path, shard: Shard) -> Path:
    write_shard(path, shard)
    return path


def relabelled(shard: Shard, purpose: Purpose) -> Shard:
    """The same talk, made for something else."""
    return Shard(**{name: getattr(shard, name) for name in Shard.__slots__} | {"purpose": purpose})


def sort(tmp_path: Path, train: list[Path], held_out: list[Path]) -> tuple[dict[str, MadeFile], MadeFile]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    for folder in out.iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    *made, listing = sort_conversations(out=out, files={"train": tuple(train), "held_out": tuple(held_out)})
    return {one.name: one for one in made}, listing


def test_shards_without_anything_in_common_are_used_as_they_came(tmp_path: Path) -> None:
    train = [written(tmp_path / f"t{seed}", random_shard(seed, conversations=5)) for seed in (1, 2)]
    held_out = [written(tmp_path / "h", random_shard(3, conversations=4, purpose=Purpose.HELD_OUT))]
    made, listing = sort(tmp_path, train, held_out)
    assert made == {}
    assert listing.detail == {
        "train": [digest_of_file(path) for path in train],
        "held_out": [digest_of_file(path) for path in held_out],
        "train_items": 10,
        "held_out_items": 4,
        "left_out": 0,
        "leaked": 0,
    }


def test_talk_that_is_held_out_is_left_out_of_training(tmp_path: Path) -> None:
    shard = random_shard(1, conversations=6)
    train = [written(tmp_path / "t", shard)]
    held_out = [written(tmp_path / "h", relabelled(select(shard, [4, 1]), Purpose.HELD_OUT))]
    made, listing = sort(tmp_path, train, held_out)
    (rest,) = made.values()
    assert rest.path is not None
    kept, scored = conversation_digests(read_shard(rest.path)), conversation_digests(read_shard(held_out[0]))
    assert kept == conversation_digests(select(shard, [0, 2, 3, 5]))
    assert not set(kept) & set(scored)
    assert listing.detail["train"] == [digest_of_file(rest.path)]
    assert (listing.detail["train_items"], listing.detail["leaked"]) == (4, 2)
    again, _ = sort(tmp_path, train, held_out)
    assert [one.name for one in again.values()] == [rest.name]
    assert listing.detail["train"] == [digest_of_file(one.path) for one in again.values() if one.path]


def test_talk_that_occurs_twice_counts_once_on_either_side(tmp_path: Path) -> None:
    shard = random_shard(1, conversations=3)
    train = [written(tmp_path / "a", shard), written(tmp_path / "b", select(shard, [2, 0]))]
    held = relabelled(random_shard(2, conversations=3), Purpose.HELD_OUT)
    held_out = [written(tmp_path / "h", select(held, [0, 1, 1]))]
    made, listing = sort(tmp_path, train, held_out)
    assert listing.detail["train"] == [digest_of_file(train[0])], "nothing is left of the second"
    assert (listing.detail["held_out_items"], listing.detail["left_out"]) == (2, 2)
    assert list(made) == ["conversations/held_out-0000"]


def test_training_that_is_all_held_out_is_refused(tmp_path: Path) -> None:
    shard = random_shard(1, conversations=3)
    train = [written(tmp_path / "t", shard)]
    held_out = [written(tmp_path / "h", relabelled(shard, Purpose.HELD_OUT))]
    with pytest.raises(RefusedError, match="of 3 conversations for training 3 are held out too") as refused:
        sort(tmp_path, train, held_out)
    assert refused.value.reason.code is ReasonCode.HELD_OUT_LEAKED


def test_nothing_to_score_with_is_refused(tmp_path: Path) -> None:
    speechless = random_shard(1, conversations=2)
    questions = Shard(
        **{name: getattr(speechless, name) for name in Shard.__slots__}
        | {"question_ids": np.zeros(0, np.int32), "question_offsets": np.zeros(3, np.int64)}
    )
    train = [written(tmp_path / "t", random_shard(2, conversations=2))]
    held_out = [written(tmp_path / "h", relabelled(questions, Purpose.HELD_OUT))]
    with pytest.raises(RefusedError, match="no held-out conversation has a question"):
        sort(tmp_path, train, held_out)
