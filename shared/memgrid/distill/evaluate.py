"""Score held-out conversations: how likely their answers are to the bare model, and to the model with an adapter.

Knows items, packing and adapters; knows nothing of leases or of what the scores are for. Conversations stand side by
side in rows and rows side by side in batches, and logits exist for answer tokens only. Shapes: n answer tokens of a
batch, k of the teacher's likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
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

Progress = Callable[[float], None]


def evaluate(
    model: CausalLM,
    frame: ChatFrame,
    items: Items,
    adapter: Adapter | None,
    *,
    batch_rows: int = BATCH_ROWS,
    progress: Progress | None = None,
) -> Scores:
    """Score the items without and, where there is an adapter, with it.

    Raises InvalidError when the frame is of another vocabulary than the model, ArithmeticError when a score is not
    finite.
    """
    check_frame(model, frame)
    conversations = [_conversation(items, number, index) for number, index in items.places]
    tokens, text_nll = teacher_scores(items)
    arms = {NONE: None} if adapter is None else {NONE: None, CUBE: adapter}
    scored: dict[str, ArmScores] = {}
    for number, (name, attached) in enumerate(arms.items()):
        scored[name] = _score(model, frame, conversations, attached, batch_rows)
        if progress is not None:
            progress((number + 1) / len(arms))
    return Scores(tokens=tokens, text_nll=text_nll, arms=scored)


def _score(
    model: CausalLM, frame: ChatFrame, conversations: Sequence[Conversation], adapter: Adapter | None, batch_rows: int
) -> ArmScores:
    """One arm's sums over each conversation's answer."""
    rows, row_tokens = _rows(conversations, frame)
    nll, kl = np.zeros(len(conversations)), np.zeros(len(conversations))
    correct = np.zeros(len(conversations), dtype=np.int64)
    head = model.get_output_embeddings()
    attach: AbstractContextManager[list[Pair]] = nullcontext([])
    if adapter is not None:
        attach = applied(model, adapter.spec, adapter.tensors)
    with torch.inference_mode(), attach as past:
        for start in range(0, len(rows), batch_rows):
            chosen = rows[start : start + batch_rows]
            batch = pack(chosen, conversations, frame, row_tokens=row_tokens, device=model.device)
            hidden = hidden_states(model, batch.ids, batch.positions, batch.segments, past)
            answers = hidden[batch.row_of_answers(), batch.columns]
            top, answered, first = student_logprobs(answers, head, batch.targets.top_ids, batch.answers)
            whose = batch.conversation.cpu().numpy()
            np.add.at(nll, whose, -answered.double().cpu().numpy())
            np.add.at(kl, whose, _divergence(batch.targets.top_probabilities, batch.targets.tail, top).cpu().numpy())
            np.add.at(correct, whose, first.cpu().numpy().astype(np.int64))
    if not (np.isfinite(nll).all() and np.isfinite(kl).all()):
        raise ArithmeticError("the scores contain NaN or infinity")
    return ArmScores(nll=nll, kl=kl, correct=correct)


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
