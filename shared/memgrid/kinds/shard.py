"""The file of conversations that studying makes and training reads: questions, answers, and what the teacher thought.

`conversations.safetensors` holds, for n conversations with A answer tokens in all and k log-probabilities of each:
`question_ids` I32 [Q] cut by `question_offsets` I64 [n + 1]; `answer_ids` I32 [A] cut by `answer_offsets`, a stop
token included where the answer ended by itself; `top_ids` U16 or U32 [A, k] and `top_logprobs` F16 [A, k], the
likeliest first; `tail` F32 [A], the mass of all other tokens; `tokenizer` U8 [32], `vocab` I64 [1], `purpose` U8 [1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from memgrid.digest import Digest
from memgrid.errors import InvalidError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import Purpose

SHARD_FILE = "conversations.safetensors"
SHARD_FORMAT = "memgrid.conversations.v1"
_HEADER_BYTES_MAX = 4096
_PURPOSES = (Purpose.TRAIN, Purpose.HELD_OUT)
_DTYPES = {
    "question_ids": "I32", "question_offsets": "I64", "answer_ids": "I32", "answer_offsets": "I64",
    "top_logprobs": "F16", "tail": "F32", "tokenizer": "U8", "vocab": "I64", "purpose": "U8",
}  # fmt: skip

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shard:
    """Conversations in order; arrays as the file has them, log-probabilities widened to float32."""

    tokenizer: Digest
    vocab: int
    purpose: Purpose
    question_ids: Ints
    question_offsets: npt.NDArray[np.int64]
    answer_ids: Ints
    answer_offsets: npt.NDArray[np.int64]
    top_ids: Ints
    """[A, k], the likeliest token first."""
    top_logprobs: Floats
    tail: Floats

    def __len__(self) -> int:
        return len(self.question_offsets) - 1

    @property
    def top_k(self) -> int:
        return int(self.top_ids.shape[1])

    def question(self, index: int) -> Ints:
        """Token ids, without the one that stopped it; empty when bot A had nothing to ask."""
        return self.question_ids[self.question_offsets[index] : self.question_offsets[index + 1]]

    def answer(self, index: int) -> Ints:
        """Token ids, with the one that stopped it, if any did."""
        return self.answer_ids[self.rows(index)]

    def rows(self, index: int) -> slice:
        """Where the answer's tokens stand in `answer_ids`, `top_ids`, `top_logprobs` and `tail`."""
        return slice(int(self.answer_offsets[index]), int(self.answer_offsets[index + 1]))


def make_shard(
    *,
    tokenizer: Digest,
    vocab: int,
    purpose: Purpose,
    questions: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    top_ids: npt.NDArray[Any],
    top_logprobs: npt.NDArray[Any],
    tail: npt.NDArray[Any],
) -> Shard:
    """A shard as it will be read back: log-probabilities are rounded to float16 here."""
    return Shard(
        tokenizer=tokenizer,
        vocab=vocab,
        purpose=purpose,
        question_ids=_joined(questions),
        question_offsets=_offsets(questions),
        answer_ids=_joined(answers),
        answer_offsets=_offsets(answers),
        top_ids=np.asarray(top_ids, dtype=np.int32),
        top_logprobs=np.asarray(top_logprobs, dtype=np.float16).astype(np.float32),
        tail=np.asarray(tail, dtype=np.float32),
    )


def write_shard(path: Path, shard: Shard) -> None:
    path.write_bytes(shard_bytes(shard))


def shard_bytes(shard: Shard) -> bytes:
    """The file; equal shards give equal bytes."""
    tensors = {
        "question_ids": shard.question_ids,
        "question_offsets": shard.question_offsets,
        "answer_ids": shard.answer_ids,
        "answer_offsets": shard.answer_offsets,
        "top_ids": shard.top_ids.astype(np.uint16 if shard.vocab <= 1 << 16 else np.uint32),
        "top_logprobs": shard.top_logprobs.astype(np.float16),
        "tail": shard.tail,
        "tokenizer": np.frombuffer(bytes.fromhex(shard.tokenizer.removeprefix("sha256:")), dtype=np.uint8),
        "vocab": np.array([shard.vocab], dtype=np.int64),
        "purpose": np.array([_PURPOSES.index(shard.purpose)], dtype=np.uint8),
    }
    content: bytes = save(tensors, metadata={"format": SHARD_FORMAT})
    return content


def read_shard(path: Path) -> Shard:
    """A shard without torch; raises InvalidError unless it is one through and through.

    Offsets ascend and cover everything, tokens are of the vocabulary, log-probabilities are finite, at most 0 and
    descending, and with the tail they make up one.
    """
    file = TensorFile.open(path, _HEADER_BYTES_MAX)
    if file.metadata != {"format": SHARD_FORMAT} or set(file.tensors) != {*_DTYPES, "top_ids"}:
        raise InvalidError(f"{path.name}: not a {SHARD_FORMAT} file")
    for name, dtype in _DTYPES.items():
        if file.tensors[name].dtype != dtype or len(file.tensors[name].shape) != (2 if name == "top_logprobs" else 1):
            raise InvalidError(f"{path.name}: {name}: expected {dtype}, found {file.tensors[name].dtype}")
    if [len(file.bits(name)) for name in ("tokenizer", "vocab", "purpose")] != [32, 1, 1]:
        raise InvalidError(f"{path.name}: expected one tokenizer, vocabulary and purpose")
    vocab, purpose = int(file.bits("vocab")[0]), int(file.bits("purpose")[0])
    if not 0 < vocab < 1 << 31 or purpose >= len(_PURPOSES):
        raise InvalidError(f"{path.name}: expected a vocabulary and a purpose, found {vocab} and {purpose}")
    if file.tensors["top_ids"].dtype != ("U16" if vocab <= 1 << 16 else "U32"):
        raise InvalidError(f"{path.name}: top_ids: found {file.tensors['top_ids'].dtype} for {vocab} tokens")
    shard = Shard(
        tokenizer=Digest("sha256:" + bytes(file.bits("tokenizer")).hex()),
        vocab=vocab,
        purpose=_PURPOSES[purpose],
        question_ids=file.bits("question_ids"),
        question_offsets=file.bits("question_offsets"),
        answer_ids=file.bits("answer_ids"),
        answer_offsets=file.bits("answer_offsets"),
        top_ids=file.bits("top_ids").astype(np.int32),
        top_logprobs=file.float32("top_logprobs"),
        tail=file.float32("tail"),
    )
    _check(shard, path.name)
    return shard


def select(shard: Shard, kept: Sequence[int]) -> Shard:
    """Only some of the conversations, in the order given."""
    rows = [np.arange(shard.rows(index).start, shard.rows(index).stop) for index in kept]
    order = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return make_shard(
        tokenizer=shard.tokenizer,
        vocab=shard.vocab,
        purpose=shard.purpose,
        questions=[shard.question(index).tolist() for index in kept],
        answers=[shard.answer(index).tolist() for index in kept],
        top_ids=shard.top_ids[order],
        top_logprobs=shard.top_logprobs[order],
        tail=shard.tail[order],
    )


def conversation_digests(shard: Shard) -> list[bytes]:
    """The sha256 of each conversation's question and answer: equal talk has equal digests, in whichever shard."""
    return [_digest(shard.question(index), shard.answer(index)) for index in range(len(shard))]


def distinct(shards: Sequence[Shard], without: Collection[bytes] = ()) -> list[tuple[int, int]]:
    """(shard, conversation) of each conversation worth reading, in order.

    Left out are those without a question, those that occurred before, and those whose digest is in `without`:
    the held-out ones, when these are for training.
    """
    seen = set(without)
    kept = []
    for number, shard in enumerate(shards):
        for index, digest in enumerate(conversation_digests(shard)):
            if digest not in seen and len(shard.question(index)):
                seen.add(digest)
                kept.append((number, index))
    return kept


def _digest(question: Ints, answer: Ints) -> bytes:
    state = hashlib.sha256(np.array([len(question)], dtype="<u4").tobytes())
    state.update(question.astype("<u4").tobytes())
    state.update(answer.astype("<u4").tobytes())
    return state.digest()


def _joined(lists: Sequence[Sequence[int]]) -> Ints:
    return np.array([token for ids in lists for token in ids], dtype=np.int32)


def _offsets(lists: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *(len(ids) for ids in lists)], dtype=np.int64)


def _check(shard: Shard, what: str) -> None:
    for name, ids, offsets in (
        ("question", shard.question_ids, shard.question_offsets),
        ("answer", shard.answer_ids, shard.answer_offsets),
    ):
        # Compared, not subtracted: a difference of the largest and the least number comes out wrong.
        is_ascending = bool((offsets[1:] >= offsets[:-1]).all())
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(ids) or not is_ascending:
            raise InvalidError(f"{what}: {name}_offsets: expected to ascend from 0 to {len(ids)}")
    tokens, top_k = len(shard.answer_ids), shard.top_logprobs.shape[1]
    if len(shard.question_offsets) != len(shard.answer_offsets):
        raise InvalidError(f"{what}: expected as many answers as questions")
    if shard.top_logprobs.shape[0] != tokens or shard.top_ids.shape != (tokens, top_k) or top_k < 1:
        raise InvalidError(f"{what}: expected top_ids and top_logprobs of {tokens} answer tokens")
    if shard.tail.shape != (tokens,):
        raise InvalidError(f"{what}: expected the tail of {tokens} answer tokens")
    for ids in (shard.question_ids, shard.answer_ids, shard.top_ids):
        if bool(((ids < 0) | (ids >= shard.vocab)).any()):
            raise InvalidError(f"{what}: expected tokens below {shard.vocab}")
    _check_probabilities(shard, what)


def _check_probabilities(shard: Shard, what: str) -> None:
    # Written so that NaN fails too.
    if not bool((shard.top_logprobs <= 0).all() & (shard.top_logprobs > -np.inf).all()):
        raise InvalidError(f"{what}: top_logprobs: expected finite numbers, at most 0")
    if bool((np.diff(shard.top_logprobs, axis=1) > 0).any()):
        raise InvalidError(f"{what}: top_logprobs: expected the likeliest token first")
    ordered = np.sort(shard.top_ids, axis=1)
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise InvalidError(f"{what}: top_ids: a token twice")
    whole = np.exp(shard.top_logprobs.astype(np.float64)).sum(axis=1) + shard.tail
    # float16 rounds a log-probability of -8 by up to 0.004, of -1 by 0.0005: together less than this.
    if not bool((shard.tail >= 0).all() & (np.abs(whole - 1) <= 5e-3).all()):
        raise InvalidError(f"{what}: expected the probabilities of a token and its tail to make up one")
