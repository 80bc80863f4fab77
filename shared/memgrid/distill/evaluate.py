"""Score held-out conversations: how likely their answers are to the bare model, and to the model with an adapter.

Knows items, packing and adapters; knows nothing of leases or of what the scores are for. Conversations stand side by
side in rows and rows side by side in batches, and logits exist for answer tokens only. Shapes: n answer tokens of a
batch, k of the teacher's likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from memgrid.distill.adapters import Adapter, Pair, applied, hidden_states
from memgrid.distill.batches import Conversation, Row, pack
from memgrid.distill.loss import student_logprobs
from memgrid.distill.model import CausalLM
from memgrid.distill.study import check_frame
from memgrid.kinds.evaluate import CUBE, NONE, ArmScores, Items, Scores, teacher_scores
from memgrid.kinds.frame import ChatFrame

ROW_TOKENS = 512
BATCH_ROWS = 4
_SMALLEST = 1e-12


@dataclass(slots=True, kw_only=True, eq=False)
class Sums:
    """How far an arm has got: the sums over each conversation's answer [n] from its first so many `rows`."""

    rows: int
    nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    correct: npt.NDArray[np.int64]

    @staticmethod
    def nought(conversations: int) -> Sums:
        nll, kl = np.zeros(conversations), np.zeros(conversations)
        return Sums(rows=0, nll=nll, kl=kl, correct=np.zeros(conversations, dtype=np.int64))


Between = Callable[[float, dict[str, Sums]], None]
"""Called after every batch with the share that is done, and how far each arm that was begun has got."""


def evaluate(
    model: CausalLM,
    frame: ChatFrame,
    items: Items,
    adapter: Adapter | None,
    *,
    batch_rows: int = BATCH_ROWS,
    former: dict[str, Sums] | None = None,
    between: Between | None = None,
) -> Scores:
    """Score the items without and, where there is an adapter, with it.

    `former` is what `between` was given in an earlier run; what is there is not computed again. Raises InvalidError
    when the frame is of another vocabulary than the model, ArithmeticError when a score is not finite.
    """
    check_frame(model, frame)
    conversations = [_conversation(items, number, index) for number, index in items.places]
    tokens, text_nll = teacher_scores(items)
    arms = {NONE: None} if adapter is None else {NONE: None, CUBE: adapter}
    sums = {} if former is None else former
    for number, (name, attached) in enumerate(arms.items()):
        arm = sums.setdefault(name, Sums.nought(len(conversations)))

        def tell(share: float, number: int = number) -> None:
            if between is not None:
                between((number + share) / len(arms), sums)

        _score(model, frame, conversations, attached, batch_rows, arm, tell)
        if not (np.isfinite(arm.nll).all() and np.isfinite(arm.kl).all()):
            raise ArithmeticError("the scores contain NaN or infinity")
    scored = {name: ArmScores(nll=arm.nll, kl=arm.kl, correct=arm.correct) for name, arm in sums.items()}
    return Scores(tokens=tokens, text_nll=text_nll, arms=scored)


def count_rows(items: Items, frame: ChatFrame) -> int:
    """How many rows an arm's conversations fill."""
    return len(_rows([_conversation(items, number, index) for number, index in items.places], frame)[0])


def _score(
    model: CausalLM,
    frame: ChatFrame,
    conversations: Sequence[Conversation],
    adapter: Adapter | None,
    batch_rows: int,
    sums: Sums,
    tell: Callable[[float], None],
) -> None:
    """Add an arm's rows to its sums, from where these end; `tell` hears after each batch which share is done."""
    rows, row_tokens = _rows(conversations, frame)
    head = model.get_output_embeddings()
    attach: AbstractContextManager[list[Pair]] = nullcontext([])
    if adapter is not None:
        attach = applied(model, adapter.spec, adapter.tensors)
    with torch.inference_mode(), attach as past:
        for start in range(sums.rows, len(rows), batch_rows):
            chosen = rows[start : start + batch_rows]
            batch = pack(chosen, conversations, frame, row_tokens=row_tokens, device=model.device)
            hidden = hidden_states(model, batch.ids, batch.positions, batch.segments, past)
            answers = hidden[batch.row_of_answers(), batch.columns]
            top, answered, first = student_logprobs(answers, head, batch.targets.top_ids, batch.answers)
            whose = batch.conversation.cpu().numpy()
            kl = _divergence(batch.targets.top_probabilities, batch.targets.tail, top).cpu().numpy()
            np.add.at(sums.nll, whose, -answered.double().cpu().numpy())
            np.add.at(sums.kl, whose, kl)
            np.add.at(sums.correct, whose, first.cpu().numpy().astype(np.int64))
            sums.rows = start + len(chosen)
            tell(sums.rows / len(rows))


def _divergence(p: torch.Tensor, tail: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL [n] from the teacher's p [n, k] and tail [n] to the arm's log q [n, k]: all other tokens count as one."""
    p, tail, log_q = p.double(), tail.double(), log_q.double()
    rest = (1 - log_q.exp().sum(1)).clamp(min=_SMALLEST)
    known = (p * (p.clamp(min=_SMALLEST).log() - log_q)).sum(1)
    return known + tail * (tail.clamp(min=_SMALLEST).log() - rest.log())


def _rows(conversations: Sequence[Conversation], frame: ChatFrame) -> tuple[list[Row], int]:
    """Conversations in order, as many to a row as fit; the tokens of the longest row."""
    room = ROW_TOKENS - len(frame.student_before)
    rows: list[list[int]] = []
    left = longest = 0
    for index, each in enumerate(conversations):
        if not len(each.answer):
            continue
        length = len(each.question) + len(frame.student_after) + len(each.answer) - 1
        longest = max(longest, length)
        if not rows or length > left:
            rows.append([])
            left = room
        rows[-1].append(index)
        left -= length
    return [tuple(row) for row in rows], len(frame.student_before) + max(room, longest)


def _conversation(items: Items, number: int, index: int) -> Conversation:
    shard = items.shards[number]
    rows = shard.rows(index)
    return Conversation(
        question=shard.question(index),
        answer=shard.answer(index),
        top_ids=shard.top_ids[rows],
        top_logprobs=shard.top_logprobs[rows],
        tail=shard.tail[rows],
    )
