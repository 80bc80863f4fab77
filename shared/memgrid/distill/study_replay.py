"""Read some conversations as written, and see whether the model would have talked like that.

Knows what studying does and repeats it with the answers known: one pass over all tokens instead of one a token.
A sampled token was right when, with its keyed noise, it was the best of the candidates; an answer's token when it
was the likeliest. Tokens whose rank is so near to the last candidate's that rounding decides are neither required
nor forbidden. Shapes: t tokens looked at, V vocabulary, k log-probabilities kept.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from memgrid.digest import token_ids
from memgrid.distill.model import CausalLM, load_model, without_fused_attention
from memgrid.distill.noise import conversation_keys, draw_asks, gumbel
from memgrid.distill.shared_context import Context, Rows, read_context
from memgrid.distill.study import CANDIDATES, check_frame, logits_of, opening_of
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.kinds.audit import Audit, judge
from memgrid.kinds.built_in_rows import RANK_EDGE
from memgrid.kinds.frame import FRAME_FILE, ChatFrame, Ids
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import ModelGeometry, flops
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import SHARD_FILE, Shard, read_shard
from memgrid.kinds.study import audited
from memgrid.kinds.study_limits import replay_limits
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import StudySpec
from memgrid.units import ComputeDtype

_CLIPPED_AT = 0.5
_COMPARED = 8
"""Log-probabilities are compared on so many of the likeliest; on all of them, by their mass."""

Doubles = npt.NDArray[np.float64]
_lock = threading.Lock()
_last_context: tuple[weakref.ref[CausalLM], tuple[int, ...], Context] | None = None


def audit_study(
    spec: StudySpec,
    *,
    model_folder: Path,
    inputs: Mapping[str, Path],
    files: Mapping[str, Path],
    compute_dtype: ComputeDtype,
    draw: bytes,
    tolerances: Tolerances,
    again: bool = False,
    part: Part | None = None,
) -> Audit:
    """Replay the conversations that `draw` picks, in float32 on the CPU."""
    frame = ChatFrame.from_bytes(inputs[FRAME_FILE].read_bytes())
    tokens = token_ids(inputs[TOKENS_FILE].read_bytes())
    shard = read_shard(files[SHARD_FILE])
    model = load_model(model_folder, torch.float32, torch.device("cpu"))
    picked = audited(spec, draw) if part is None else part.pieces
    row = tolerances.row("study.replay", compute_dtype, ComputeDtype.FLOAT32)
    try:
        parts = replay_conversations(model, spec, frame, tokens, shard, picked, edge=row[RANK_EDGE], again=again)
    except _OtherWordsError as error:
        return judge({}, {}, where=f"conversation {error.index}", broken_rule=_OTHER_WORDS, flops=0)
    replay = joined(parts)
    questions, answers = len(replay.question_margins), len(replay.answer_margins)
    limits = replay_limits(row, question_tokens=questions, answer_tokens=answers)
    found = judge(replay.statistics(), limits, flops=replay_flops(spec, geometry_of_model(model), replay))
    name, _ = found.worst
    worst = max(range(len(parts)), key=lambda place: parts[place].statistics()[name])
    return dataclasses.replace(found, where=f"conversation {picked[worst]}")


_OTHER_WORDS = "a question does not begin with the words it was given"
"""No rounding explains that."""


class _OtherWordsError(Exception):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replay:
    """What each token shows: margins [t] in logits, differences of log-probabilities [t, 8] and of their mass [t]."""

    question_margins: Doubles
    answer_margins: Doubles
    logprobs: Doubles
    masses: Doubles
    lengths: tuple[int, ...]
    """Of all sequences that were read."""

    def statistics(self) -> dict[str, float]:
        return {
            "question margin": _largest(self.question_margins),
            "mean question margin": _mean(np.minimum(self.question_margins, _CLIPPED_AT)),
            "answer margin": _largest(self.answer_margins),
            "mean answer margin": _mean(np.minimum(self.answer_margins, _CLIPPED_AT)),
            "mean log-probability difference": _mean(self.logprobs),
            "99th percentile of log-probability differences": _percentile(self.logprobs),
            "log-probability difference": _largest(self.logprobs),
            "probability mass difference": _largest(self.masses),
        }


def joined(parts: Sequence[Replay]) -> Replay:
    """What all conversations show together."""
    return Replay(
        question_margins=np.concatenate([part.question_margins for part in parts]),
        answer_margins=np.concatenate([part.answer_margins for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        masses=np.concatenate([part.masses for part in parts]),
        lengths=tuple(length for part in parts for length in part.lengths),
    )


def replay_conversations(
    model: CausalLM,
    spec: StudySpec,
    frame: ChatFrame,
    tokens: Sequence[int],
    shard: Shard,
    picked: Sequence[int],
    *,
    edge: float,
    again: bool = False,
) -> list[Replay]:
    """Read questions after their seed prompts, and answers after their questions, all in one pass: a replay of each.

    With `again` they are read one by one, each after the text read anew without fused attention.
    """
    check_frame(model, frame)
    keys = conversation_keys(spec.seed, spec.purpose, [spec.first + index for index in picked])
    asks = draw_asks(keys, len(frame.asks))
    questions = [tuple(shard.question(index).tolist()) for index in picked]
    answers = [tuple(shard.answer(index).tolist()) for index in picked]
    openings = [opening_of(spec, frame, ask) for ask in asks]
    for index, question, opening in zip(picked, questions, openings, strict=True):
        if question[: len(opening)] != opening:
            raise _OtherWordsError(index)
    asking = [(*frame.asks[ask], *question) for ask, question in zip(asks, questions, strict=True)]
    answering = [
        (*frame.teacher_before, *question, *frame.teacher_after, *answer[:-1])
        for question, answer in zip(questions, answers, strict=True)
    ]
    read = [*asking, *answering]
    hidden = _read_apart(model, tokens, read) if again else _read(model, _context_of(model, tokens), read)
    replays = []
    for row, index in enumerate(picked):
        drawn = hidden[row][len(frame.asks[asks[row]]) + len(openings[row]) - 1 : len(asking[row])]
        margins = _question_margins(logits_of(model, frame, drawn), keys[row : row + 1], questions[row],
                                    len(openings[row]), spec, frame, edge)  # fmt: skip
        answer_margins, logprobs, masses = (np.zeros(0), np.zeros((0, _COMPARED)), np.zeros(0))
        if answers[row]:
            end = len(answering[row])
            said = hidden[len(picked) + row][end - len(answers[row]) : end]
            logits = logits_of(model, frame, said)
            answer_margins, logprobs, masses = _answer_differences(logits, shard, shard.rows(index))
        lengths = (len(asking[row]), len(answering[row]))
        replays.append(Replay(question_margins=margins, answer_margins=answer_margins, logprobs=logprobs,
                              masses=masses, lengths=lengths))  # fmt: skip
    return replays


def _read(model: CausalLM, context: Context, read: Sequence[Sequence[int]]) -> Sequence[torch.Tensor]:
    """Hidden states [t, hidden] of each sequence after the context, and whatever stands behind its end."""
    return list(Rows(model, context, len(read), max(map(len, read))).feed(read))


def _read_apart(model: CausalLM, tokens: Sequence[int], read: Sequence[Sequence[int]]) -> Sequence[torch.Tensor]:
    with without_fused_attention(model):
        context = read_context(model, tokens)
    return [_read(model, context, [sequence])[0] for sequence in read]


def _context_of(model: CausalLM, tokens: Sequence[int]) -> Context:
    """The text, read; the last one is remembered, for the units of a text are checked one after another."""
    global _last_context
    with _lock:
        last = _last_context
        if last is None or last[0]() is not model or last[1] != tuple(tokens):
            _last_context = None
            last = _last_context = (weakref.ref(model), tuple(tokens), read_context(model, tokens))
        return last[2]


def _question_margins(
    logits: torch.Tensor,
    key: npt.NDArray[np.uint64],
    question: Ids,
    given: int,
    spec: StudySpec,
    frame: ChatFrame,
    edge: float,
) -> Doubles:
    """How much better than each claimed token another candidate was, in logits; infinite for one that was none.

    After the last token of a question that ended by itself comes whichever stop fits best.
    """
    ended = len(question) < spec.question_tokens
    claimed: list[Ids] = [(token,) for token in question[given:]]
    claimed += [(*frame.stops, *frame.question_stops)] if ended else []
    top = logits[: len(claimed)].topk(min(4 * CANDIDATES, frame.vocab))
    values, ids = top.values.double().numpy(), top.indices.numpy()
    last = values[:, min(CANDIDATES, values.shape[1]) - 1]
    positions = np.arange(given, given + len(claimed))
    noise = gumbel(np.repeat(key, len(claimed)), positions, ids) * spec.temperature
    noisy = values + noise
    certain = values >= last[:, None] + edge
    possible = values >= last[:, None] - edge
    margins = np.full(len(claimed), np.inf)
    for place, tokens in enumerate(claimed):
        named = np.isin(ids[place], tokens) & possible[place]
        if named.any():
            best = noisy[place][certain[place]].max(initial=-np.inf)
            margins[place] = max(0.0, best - noisy[place][named].max())
    return margins


def _answer_differences(logits: torch.Tensor, shard: Shard, rows: slice) -> tuple[Doubles, Doubles, Doubles]:
    """Greedy margins [t], |log-probability differences| [t, 8] of the likeliest, |mass differences| [t] of all."""
    logits = logits.double()
    chosen = logits.gather(1, torch.from_numpy(shard.answer_ids[rows].astype(np.int64))[:, None])[:, 0]
    margins = (logits.max(dim=1).values - chosen).numpy()
    top_ids = torch.from_numpy(shard.top_ids[rows].astype(np.int64))
    found = (logits.gather(1, top_ids) - torch.logsumexp(logits, dim=1, keepdim=True)).numpy()
    claimed = shard.top_logprobs[rows].astype(np.float64)
    # Rounded as the shard is, so that its rounding does not count as the host's.
    rounded = np.minimum(found, 0).astype(np.float16).astype(np.float64)
    apart = np.full((len(margins), _COMPARED), np.nan)
    width = min(_COMPARED, claimed.shape[1])
    apart[:, :width] = np.abs(claimed - rounded)[:, :width]
    return margins, apart, np.abs(np.exp(claimed) - np.exp(rounded)).sum(axis=1)


def replay_flops(spec: StudySpec, geometry: ModelGeometry, replay: Replay) -> int:
    """What the replay cost, by the count that prices units."""
    looked_at = len(replay.question_margins) + len(replay.answer_margins)
    read = sum(flops(geometry, length, spec.token_count) for length in replay.lengths)
    return flops(geometry, spec.token_count, 0) + read + 2 * geometry.vocab * geometry.hidden * looked_at


def _largest(values: Doubles) -> float:
    return float(np.nanmax(values)) if values.size else 0.0


def _mean(values: Doubles) -> float:
    return float(np.nanmean(values)) if values.size else 0.0


def _percentile(values: Doubles) -> float:
    return float(np.nanpercentile(values, 99)) if values.size else 0.0
