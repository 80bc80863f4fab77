"""A file of conversations is read only when it is one all through; equal talk is found wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from memgrid.digest import digest_of
from memgrid.errors import InvalidError
from memgrid.kinds.shard import (
    SHARD_FORMAT,
    Shard,
    conversation_digests,
    distinct,
    make_shard,
    read_shard,
    select,
    write_shard,
)
from memgrid.specs import Purpose

Tensors = dict[str, np.ndarray]


def shard_of(talks: list[tuple[list[int], list[int]]], *, vocab: int = 300, top_k: int = 3) -> Shard:
    rng = np.random.default_rng(1)
    tokens = sum(len(answer) for _, answer in talks)
    weights = -np.sort(-rng.dirichlet(np.ones(top_k + 1), size=tokens), axis=1)[:, :top_k]
    logprobs = np.log(weights).astype(np.float16)
    return make_shard(
        tokenizer=digest_of(b"tokenizer"),
        vocab=vocab,
        purpose=Purpose.TRAIN,
        questions=[question for question, _ in talks],
        answers=[answer for _, answer in talks],
        top_ids=np.argsort(rng.random((tokens, vocab)), axis=1)[:, :top_k],
        top_logprobs=logprobs,
        tail=1 - np.exp(logprobs.astype(np.float64)).sum(axis=1),
    )


TALKS = [([5, 6], [7, 8, 2]), ([], []), ([9], [10]), ([5, 6], [7, 8, 2]), ([5], [6, 7, 8, 2])]
TALK = st.tuples(st.lists(st.integers(0, 299), max_size=4), st.lists(st.integers(0, 299), max_size=4))


@settings(deadline=None, max_examples=40)
@given(st.lists(TALK, max_size=5), st.sampled_from([300, 70_000]))
def test_a_shard_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, talks: list[tuple[list[int], list[int]]], vocab: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "conversations.safetensors"
    shard = shard_of(talks, vocab=vocab)
    write_shard(path, shard)
    content, read = path.read_bytes(), read_shard(path)
    assert [(read.question(i).tolist(), read.answer(i).tolist()) for i in range(len(read))] == talks
    assert np.array_equal(read.top_ids, shard.top_ids) and np.array_equal(read.top_logprobs, shard.top_logprobs)
    assert (read.tokenizer, read.vocab, read.purpose) == (shard.tokenizer, vocab, Purpose.TRAIN)
    write_shard(path, read)
    assert path.read_bytes() == content


def put(name: str, value: np.ndarray) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.__setitem__(name, value)


def at(name: str, place: tuple[int, ...] | int, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].__setitem__(place, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensors: tensors.pop("tail"), "not a memgrid.conversations.v1 file"),
        (put("extra", np.zeros(1)), "not a memgrid.conversations.v1 file"),
        (put("tail", np.zeros(11, dtype=np.float64)), "tail: expected F32"),
        (put("tail", np.zeros(3, dtype=np.float32)), "the tail of 11"),
        (put("vocab", np.array([0], dtype=np.int64)), "expected a vocabulary"),
        (put("vocab", np.array([300, 1], dtype=np.int64)), "one tokenizer, vocabulary"),
        (put("purpose", np.array([2], dtype=np.uint8)), "expected a vocabulary and a purpose"),
        (put("top_ids", np.zeros((11, 3), dtype=np.uint32)), "top_ids: found U32 for 300 tokens"),
        (put("top_ids", np.zeros((11, 2), dtype=np.uint16)), "expected top_ids and top_logprobs"),
        (at("top_ids", (4, 1), 300), "tokens below 300"),
        (at("answer_ids", 0, -1), "tokens below 300"),
        (at("question_ids", 0, 300), "tokens below 300"),
        (at("answer_offsets", 1, 5), "answer_offsets: expected to ascend"),
        (at("question_offsets", 0, 1), "question_offsets: expected to ascend"),
        (put("question_offsets", np.array([0, 6], dtype=np.int64)), "as many answers as questions"),
        (at("top_logprobs", (0, 0), 0.5), "at most 0"),
        (at("top_logprobs", (0, 2), -np.inf), "finite numbers"),
        (at("top_logprobs", (0, 2), np.nan), "finite numbers"),
        (at("top_logprobs", (0, 2), -0.001), "likeliest token first"),
        (at("tail", 3, 0.9), "make up one"),
        (at("tail", 3, np.nan), "make up one"),
        (lambda tensors: at("top_ids", (0, 1), tensors["top_ids"][0, 0])(tensors), "a token twice"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path: Path, spoil: Callable[[Tensors], object], message: str) -> None:
    path = tmp_path / "conversations.safetensors"
    write_shard(path, shard_of(TALKS))
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path, {"format": SHARD_FORMAT})
    with pytest.raises(InvalidError, match=message):
        read_shard(path)


def test_equal_talk_has_equal_digests_and_a_cut_elsewhere_another() -> None:
    digests = conversation_digests(shard_of(TALKS))
    assert digests[0] == digests[3]
    assert len(set(digests)) == 4
    # The same tokens, split otherwise between question and answer, are another conversation.
    assert digests[0] != digests[4]


def test_each_conversation_counts_once_and_those_without_a_question_never() -> None:
    first, second = shard_of(TALKS), shard_of([([9], [10]), ([11], [2])])
    assert distinct([first, second]) == [(0, 0), (0, 2), (0, 4), (1, 1)]
    held_out = set(conversation_digests(second))
    assert distinct([first, second], held_out) == [(0, 0), (0, 4)]


def test_selected_conversations_keep_their_log_probabilities(tmp_path: Path) -> None:
    shard = shard_of(TALKS)
    chosen = select(shard, [4, 0])
    assert chosen.question(0).tolist() == [5] and chosen.answer(1).tolist() == [7, 8, 2]
    assert np.array_equal(chosen.top_logprobs[chosen.rows(1)], shard.top_logprobs[shard.rows(0)])
    write_shard(tmp_path / "chosen.safetensors", chosen)
    assert conversation_digests(read_shard(tmp_path / "chosen.safetensors")) == [
        conversation_digests(shard)[4],
        conversation_digests(shard)[0],
    ]
