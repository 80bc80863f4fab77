"""Which conversations stand in which row of which step, and those rows as tensors.

Knows conversations, frames and packing; knows nothing of models. A row holds the words that begin every
conversation once, then conversations side by side, each of which sees these first words and itself. Shapes: m rows,
t tokens of a row, n answer tokens, k of the teacher's likeliest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch

from memgrid.distill.loss import Targets
from memgrid.errors import InvalidError
from memgrid.kinds.frame import ChatFrame
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import Shard, distinct
from memgrid.units import ReasonCode

LENGTH_MULTIPLE = 8
"""Rows are filled up to a multiple of this, for kernels that like it."""
_PASSED_OVER_MAX = 8
"""So many conversations may wait for the next step because they fit nowhere, before a step is called full."""

Row = tuple[int, ...]
"""The conversations of a row, in order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversation:
    """One question and answer, with what the teacher thought of each answer token."""

    question: npt.NDArray[np.int32]
    answer: npt.NDArray[np.int32]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]
    tail: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """Rows as tensors; see `adapters.hidden_states` for ids, positions and segments [m, t].

    Answer tokens are in order of rows: `columns` [n] is where each is predicted, `bounds` [m + 1] cuts them by row,
    `conversation` [n] says whose they are.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    columns: torch.Tensor
    bounds: tuple[int, ...]
    answers: torch.Tensor
    conversation: torch.Tensor
    targets: Targets

    @property
    def answer_tokens(self) -> int:
        return self.bounds[-1]

    def rows(self, start: int, stop: int) -> Packed:
        """Some of the rows, at the same length."""
        first, last = self.bounds[start], self.bounds[stop]
        return Packed(
            ids=self.ids[start:stop],
            positions=self.positions[start:stop],
            segments=self.segments[start:stop],
            columns=self.columns[first:last],
            bounds=tuple(bound - first for bound in self.bounds[start : stop + 1]),
            answers=self.answers[first:last],
            conversation=self.conversation[first:last],
            targets=self.targets.part(first, last),
        )

    def row_of_answers(self) -> torch.Tensor:
        """[n]: the row each answer token stands in."""
        counts = torch.tensor(np.diff(self.bounds), device=self.ids.device)
        return torch.repeat_interleave(torch.arange(len(counts), device=self.ids.device), counts)


def conversations_of(shards: Sequence[Shard], frame: ChatFrame) -> list[Conversation]:
    """Every conversation worth reading, once.

    Raises RefusedError (VOCABULARY_MISMATCH) when a shard is of another tokenizer or vocabulary than the frame.
    """
    for number, shard in enumerate(shards):
        if (shard.tokenizer, shard.vocab) != (frame.tokenizer, frame.vocab):
            raise RefusedError(
                ReasonCode.VOCABULARY_MISMATCH,
                f"shard {number}: made with tokenizer {shard.tokenizer[:19]} of {shard.vocab} tokens, "
                f"the frame is of {frame.tokenizer[:19]} with {frame.vocab}",
            )
    found = []
    for number, index in distinct(shards):
        shard, rows = shards[number], shards[number].rows(index)
        if rows.stop > rows.start:
            found.append(
                Conversation(
                    question=shard.question(index),
                    answer=shard.answer(index),
                    top_ids=shard.top_ids[rows],
                    top_logprobs=shard.top_logprobs[rows],
                    tail=shard.tail[rows],
                )
            )
    return found


class Batches:
    """The rows of every step of one stream: a function of conversations, seed, stream and step alone.

    The conversations are shuffled anew for every pass; streams share a pass out between them. A step takes them in
    order into the first row with room; what fits nowhere waits for the next step. An answer too long for a row
    loses its end.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        frame: ChatFrame,
        *,
        seed: int,
        stream: int,
        streams: int,
        batch_rows: int,
        row_tokens: int,
    ) -> None:
        self._rows, self._seed, self._stream, self._streams = batch_rows, seed, stream, streams
        self._room = row_tokens - len(frame.student_before)
        self._lengths = {
            index: min(self._room, fixed + len(each.answer) - 1)
            for index, each in enumerate(conversations)
            if (fixed := len(each.question) + len(frame.student_after)) <= self._room
        }
        if len(self._lengths) < streams:
            raise InvalidError(
                f"shards: {len(self._lengths)} conversations fit into rows of {row_tokens} tokens, "
                f"expected at least {streams}, one for every stream"
            )
        self._steps: list[tuple[Row, ...]] = []
        self._waiting: deque[int] = deque()
        self._order = self._passes()

    def step(self, step: int) -> tuple[Row, ...]:
        """The rows of a step; any step may be asked for, in any order."""
        while len(self._steps) <= step:
            self._steps.append(self._fill())
        return self._steps[step]

    def _fill(self) -> tuple[Row, ...]:
        rows: list[list[int]] = [[] for _ in range(self._rows)]
        room = [self._room] * self._rows
        queue, passed = self._waiting, deque[int]()
        while len(passed) < _PASSED_OVER_MAX:
            index = queue.popleft() if queue else next(self._order)
            row = next((row for row in range(self._rows) if room[row] >= self._lengths[index]), None)
            if row is None:
                passed.append(index)
            else:
                rows[row].append(index)
                room[row] -= self._lengths[index]
        self._waiting = passed + queue
        return tuple(tuple(row) for row in rows)

    def _passes(self) -> Iterator[int]:
        """This stream's conversations, pass after pass, without end."""
        fitting = np.array(sorted(self._lengths))
        number = 0
        while True:
            keys = counter_words(f"order {self._seed} {number}", len(fitting))
            mixed = fitting[np.argsort(keys, kind="stable")]
            yield from (int(index) for index in mixed[self._stream :: self._streams])
            number += 1


def counter_words(name: str, count: int) -> npt.NDArray[np.uint64]:
    """Random 64-bit words that follow from a name alone, equal on every machine (Philox, a counter-based generator).

    >>> counter_words("order 1 0", 2).tolist()
    [16662168649908943691, 11261180592455469369]
    """
    key = int.from_bytes(sha256(f"memgrid train {name}".encode()).digest()[:16], "little")
    # Its raw words are specified; numpy's distributions made of them may change between releases.
    return np.random.Philox(key=key).random_raw(count)


def pack(
    rows: Sequence[Row],
    conversations: Sequence[Conversation],
    frame: ChatFrame,
    *,
    row_tokens: int,
    device: torch.device,
    length: int = 0,
) -> Packed:
    """Lay rows out as tensors of one length: the longest row's, or `length` if that is more."""
    laid = [_lay_out(row, conversations, frame, row_tokens) for row in rows]
    longest = max(length, *(len(row.ids) for row in laid))
    shape = (len(laid), -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    for number, row in enumerate(laid):
        ids[number, : len(row.ids)] = row.ids
        positions[number, : len(row.ids)] = row.positions
        segments[number, : len(row.ids)] = row.segments

    def joined(name: str, dtype: type[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(row, name) for row in laid]).astype(dtype)).to(device)

    return Packed(
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        segments=torch.from_numpy(segments).to(device),
        columns=joined("columns", np.int64),
        bounds=tuple(int(bound) for bound in np.cumsum([0, *(len(row.columns) for row in laid)])),
        answers=joined("answers", np.int64),
        conversation=joined("conversation", np.int64),
        targets=Targets(
            top_ids=joined("top_ids", np.int64),
            top_probabilities=joined("top_probabilities", np.float32),
            tail=joined("tail", np.float32),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _LaidOut:
    ids: list[int]
    positions: list[int]
    segments: list[int]
    columns: list[int]
    answers: npt.NDArray[np.int32]
    conversation: list[int]
    top_ids: npt.NDArray[np.int32]
    top_probabilities: npt.NDArray[np.float32]
    tail: npt.NDArray[np.float32]


def _lay_out(row: Row, conversations: Sequence[Conversation], frame: ChatFrame, row_tokens: int) -> _LaidOut:
    """One row: the student's first words, then each conversation up to its last answer token but one."""
    before = list(frame.student_before)
    ids, positions, segments = list(before), list(range(len(before))), [0] * len(before)
    columns: list[int] = []
    whose: list[int] = []
    kept: list[int] = []
    for segment, index in enumerate(row, start=1):
        each = conversations[index]
        asked = [*each.question.tolist(), *frame.student_after]
        count = min(len(each.answer), row_tokens - len(before) - len(asked) + 1)
        words = [*asked, *each.answer[: count - 1].tolist()]
        # The token before an answer token is where it is predicted.
        first = len(ids) + len(asked) - 1
        columns.extend(range(first, first + count))
        whose.extend([index] * count)
        kept.append(count)
        ids.extend(words)
        positions.extend(range(len(before), len(before) + len(words)))
        segments.extend([segment] * len(words))
    chosen = [(conversations[index], count) for index, count in zip(row, kept, strict=True)]
    return _LaidOut(
        ids=ids,
        positions=positions,
        segments=segments,
        columns=columns,
        answers=np.concatenate([each.answer[:count] for each, count in chosen]),
        conversation=whose,
        top_ids=np.concatenate([each.top_ids[:count] for each, count in chosen]),
        top_probabilities=np.exp(np.concatenate([each.top_logprobs[:count] for each, count in chosen])),
        tail=np.concatenate([each.tail[:count] for each, count in chosen]),
    )
