"""Let a model talk with itself about a text: bot A asks, bot B answers, many conversations at once.

Knows frames, noise and how to decode in batches; knows neither leases nor files. Questions are sampled with keyed
noise at a temperature, answers are greedy; both bots see the text, whose KV cache exists once. Shapes: b
conversations at work, k log-probabilities kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from memgrid.distill.adapters import check_head
from memgrid.distill.model import CausalLM
from memgrid.distill.noise import Keys, conversation_keys, draw_asks, gumbel
from memgrid.distill.shared_context import Context, Rows, read_context
from memgrid.errors import InvalidError
from memgrid.kinds.frame import ChatFrame, Ids
from memgrid.kinds.shard import Shard, make_shard
from memgrid.specs import StudySpec

CANDIDATES = 64
"""Questions are sampled among so many of the likeliest tokens."""
BATCH = 32
_CPU_BATCH_LEAST = 4
_CPU_PHASE_FLOPS = 1 << 39
"""Questions and answers of a batch are committed when all of them are there: some seconds' work of a CPU."""
_SHRINK_AT = 0.75
"""When fewer rows than this share are still at work, the others' caches are let go."""

Between = Callable[[int, Callable[[], Shard]], None]
"""Called now and then with how many thirds of conversations are done, and what gives all that is there so far."""
Rest = Callable[[], None]


@dataclass(slots=True)
class Answer:
    """An answer as it grows, and the teacher's k likeliest tokens at each place."""

    ids: list[int] = field(default_factory=list)
    top_ids: list[npt.NDArray[Any]] = field(default_factory=list)
    top_logprobs: list[npt.NDArray[Any]] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)


def study(
    model: CausalLM,
    spec: StudySpec,
    frame: ChatFrame,
    tokens: Sequence[int],
    *,
    batch: int = BATCH,
    former: Shard | None = None,
    between: Between | None = None,
    rest: Rest = lambda: None,
) -> Shard:
    """All conversations of a unit, `batch` at a time.

    `tokens` are the text as its unit names it. `former` is what `between` was given in an earlier run: with the same
    `batch` the same bits come out as if there had been no two runs. `rest` is called after every token. Raises
    InvalidError when the frame is of another vocabulary than the model, ArithmeticError when a log-probability is not
    finite.
    """
    check_frame(model, frame)
    context = read_context(model, tokens)
    keys = conversation_keys(spec.seed, spec.purpose, range(spec.first, spec.first + spec.conversations))
    questions, answers = ([], []) if former is None else _talk_of(former)

    def tell(done: int) -> None:
        if between is not None:
            between(done, lambda: _shard(spec, frame, questions, answers))

    while len(answers) < spec.conversations:
        start = len(answers)
        if start == len(questions):
            questions += _ask(model, context, spec, frame, keys[start : start + batch], rest)
            tell(2 * start + len(questions))
        asked = questions[start : start + batch]
        answers += _answer(model, context, spec, frame, asked, rest)
        tell(3 * len(answers))
    return _shard(spec, frame, questions, answers)


def conversations_at_once(spec: StudySpec, flops_per_token: int, device_kind: str) -> int:
    """How many conversations a batch has; like a micro-batch of reading it hangs on model and kind of device alone.

    >>> from memgrid.digest import digest_of
    >>> from memgrid.specs import Purpose
    >>> from memgrid.units import ComputeDtype
    >>> some = digest_of(b"")
    >>> spec = StudySpec(model=some, frame=some, tokens=some, token_count=9, purpose=Purpose.TRAIN, seed=1, first=0,
    ...     conversations=64, temperature=0.6, question_tokens=48, answer_tokens=96, top_k=20,
    ...     compute_dtype=ComputeDtype.AUTO)
    >>> conversations_at_once(spec, 270_000_000, "cpu"), conversations_at_once(spec, 16_000_000_000, "cuda")
    (16, 32)
    """
    if device_kind != "cpu":
        return min(BATCH, spec.conversations)
    each = max(spec.question_tokens, spec.answer_tokens) * max(1, flops_per_token)
    fitting = 1 << max(0, (_CPU_PHASE_FLOPS // each).bit_length() - 1)
    return min(BATCH, max(_CPU_BATCH_LEAST, fitting), spec.conversations)


def check_frame(model: CausalLM, frame: ChatFrame) -> None:
    """Raises InvalidError unless the frame's tokens are the model's, and its head is one that can be replayed."""
    check_head(model)
    rows = model.get_output_embeddings().weight.shape[0]
    if frame.vocab > rows:
        raise InvalidError(f"frame.json: a vocabulary of {frame.vocab} tokens, but the model knows {rows}")


def logits_of(model: CausalLM, frame: ChatFrame, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states [b, hidden] -> float32 logits [b, V] of the tokenizer's tokens; models may have more rows."""
    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias[: frame.vocab]
    with torch.inference_mode():
        return functional.linear(hidden, head.weight[: frame.vocab], bias).float()


def opening_of(spec: StudySpec, frame: ChatFrame, ask: int) -> Ids:
    """The words a question is given; one token at least is left to draw."""
    return frame.opening(ask)[: spec.question_tokens - 1]


def _ask(model: CausalLM, context: Context, spec: StudySpec, frame: ChatFrame, keys: Keys, rest: Rest) -> list[Ids]:
    """The questions of some conversations, their given words included, without the token that ended them."""
    asks = draw_asks(keys, len(frame.asks))
    questions = [list(opening_of(spec, frame, ask)) for ask in asks]

    def choose(at_work: list[int], logits: torch.Tensor) -> list[int | None]:
        top = logits.topk(min(CANDIDATES, frame.vocab))
        ids = top.indices.cpu().numpy()
        positions = np.array([len(questions[row]) for row in at_work])
        noisy = top.values.cpu().numpy().astype(np.float64) / spec.temperature
        noisy += gumbel(keys[at_work], positions, ids)
        chosen = ids[np.arange(len(ids)), noisy.argmax(axis=1)]
        return [add(row, int(token)) for row, token in zip(at_work, chosen, strict=True)]

    def add(row: int, token: int) -> int | None:
        if token in frame.stops or token in frame.question_stops:
            return None
        questions[row].append(token)
        return token if len(questions[row]) < spec.question_tokens else None

    prompts = [(*frame.asks[ask], *question) for ask, question in zip(asks, questions, strict=True)]
    _decode(model, context, frame, prompts, spec.question_tokens, choose, rest)
    return [tuple(question) for question in questions]


def _answer(
    model: CausalLM, context: Context, spec: StudySpec, frame: ChatFrame, questions: Sequence[Ids], rest: Rest
) -> list[Answer]:
    """Greedy answers; none where nothing was asked."""
    answers = [Answer() for _ in questions]
    asked = [row for row, question in enumerate(questions) if question]
    if not asked:
        return answers

    def choose(at_work: list[int], logits: torch.Tensor) -> list[int | None]:
        top_ids, top_logprobs, tail = top_and_tail(logits, spec.top_k)
        for place, row in enumerate(at_work):
            answer = answers[asked[row]]
            answer.ids.append(int(top_ids[place, 0]))
            answer.top_ids.append(top_ids[place])
            answer.top_logprobs.append(top_logprobs[place])
            answer.tail.append(float(tail[place]))
        return [unless_last(answers[asked[row]].ids) for row in at_work]

    def unless_last(ids: list[int]) -> int | None:
        return None if ids[-1] in frame.stops or len(ids) == spec.answer_tokens else ids[-1]

    prompts = [(*frame.teacher_before, *questions[row], *frame.teacher_after) for row in asked]
    _decode(model, context, frame, prompts, spec.answer_tokens, choose, rest)
    return answers


def top_and_tail(
    logits: torch.Tensor, top_k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The k likeliest tokens [b, k], their log-probabilities [b, k], and what is left for all others [b]."""
    top = logits.topk(top_k)
    logprobs = top.values - torch.logsumexp(logits, dim=1, keepdim=True)
    if not bool(torch.isfinite(logprobs).all()):
        raise ArithmeticError("the teacher's log-probabilities contain NaN or infinity")
    logprobs = logprobs.clamp(max=0)
    tail = (1 - logprobs.double().exp().sum(1)).clamp(min=0)
    return top.indices.cpu().numpy(), logprobs.cpu().numpy(), tail.float().cpu().numpy()


def _decode(
    model: CausalLM,
    context: Context,
    frame: ChatFrame,
    prompts: Sequence[Ids],
    most: int,
    choose: Callable[[list[int], torch.Tensor], list[int | None]],
    rest: Rest,
) -> None:
    """Continue each prompt by at most `most` tokens: `choose` gives the next one of each row, None where it ends."""
    rows = Rows(model, context, len(prompts), max(map(len, prompts)) + most)
    hidden = rows.feed(prompts)
    last = hidden[torch.arange(len(prompts), device=hidden.device), rows.lengths - 1]
    held = list(range(len(prompts)))  # the prompts whose caches are there
    at_work = list(held)  # those of them that go on
    while at_work:
        logits = logits_of(model, frame, last[[held.index(row) for row in at_work]])
        chosen = dict(zip(at_work, choose(at_work, logits), strict=True))
        following = {row: token for row, token in chosen.items() if token is not None}
        at_work = list(following)
        if not at_work:
            return
        if len(at_work) <= _SHRINK_AT * len(held):
            rows.keep([held.index(row) for row in at_work])
            held = list(at_work)
        # Rows that have ended are fed nothing: their lengths stay, and nobody looks at what comes out.
        rest()
        hidden = rows.feed([[following[row]] if row in following else [] for row in held])
        last = hidden[:, 0]


def _talk_of(former: Shard) -> tuple[list[Ids], list[Answer]]:
    """Questions and answers of a shard; at its end may stand questions that have not been answered.

    Whatever is asked gets an answer of one token at least, and rounding what was rounded changes nothing.
    """
    questions = [tuple(former.question(index).tolist()) for index in range(len(former))]
    answers: list[Answer] = []
    for index, question in enumerate(questions):
        rows = former.rows(index)
        if question and rows.start == rows.stop:
            break
        answers.append(
            Answer(
                ids=former.answer(index).tolist(),
                top_ids=list(former.top_ids[rows]),
                top_logprobs=list(former.top_logprobs[rows]),
                tail=former.tail[rows].tolist(),
            )
        )
    return questions, answers


def _shard(spec: StudySpec, frame: ChatFrame, questions: Sequence[Ids], answers: Sequence[Answer]) -> Shard:
    unanswered = [Answer()] * (len(questions) - len(answers))
    empty = np.zeros((0, spec.top_k))
    return make_shard(
        tokenizer=frame.tokenizer,
        vocab=frame.vocab,
        purpose=spec.purpose,
        questions=questions,
        answers=[answer.ids for answer in (*answers, *unanswered)],
        top_ids=np.concatenate([empty, *(np.stack(each.top_ids) for each in answers if each.ids)]),
        top_logprobs=np.concatenate([empty, *(np.stack(each.top_logprobs) for each in answers if each.ids)]),
        tail=np.array([mass for answer in answers for mass in answer.tail]),
    )
