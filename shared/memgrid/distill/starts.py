"""Where training starts: a prefix from the text's own keys and values, LoRA from a seed, as a state of step 0.

Knows the ways to start and the state file; knows nothing of stages or hosts. A start is trusted, small work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from memgrid.campaign_distill import Start
from memgrid.distill.adapters import PREFIX_TENSOR, Pair, expected_shapes
from memgrid.distill.batches import counter_words
from memgrid.distill.compaction import Talk, check_compactable, compact
from memgrid.distill.model import CausalLM
from memgrid.distill.shared_context import read_context
from memgrid.distill.state import Arrays, cold_state, without_moments, write_state
from memgrid.errors import DoesNotFitError, InvalidError
from memgrid.kinds.frame import ChatFrame
from memgrid.kinds.lowrank import seeded_a
from memgrid.kinds.shard import Shard, read_shard
from memgrid.specs import AdapterKind, AdapterSpec, Purpose

MATCHED_TOKENS_MAX = 1024
"""Compaction matches attention at about so many tokens of talk: more takes longer and gains little."""
SAMPLED_CHUNKS = 8


def start_state(
    model: CausalLM,
    adapter: AdapterSpec,
    start: Start,
    context_tokens: Sequence[int],
    seed: int,
    path: Path,
    *,
    frame: ChatFrame | None = None,
    shards: Sequence[Path] = (),
    moments: bool = True,
) -> Start:
    """Write the state of step 0, without Adam's `moments` if rounds follow; returns the way it really started.

    `compacted` matches attention over the conversations of `shards` (to be trained on; they need the frame), or,
    without any, over the text read once more. A model whose keys can't be moved starts from its first tokens
    instead. Raises InvalidError when the text is too short for the adapter, or a shard is held out.
    """
    if adapter.kind is AdapterKind.LORA:
        _write(path, _lora(model, adapter, seed), moments=moments)
        return start
    count, tokens = len(context_tokens), adapter.virtual_tokens
    if count <= tokens:
        raise InvalidError(f"adapter: {tokens} virtual tokens for a text of {count}: expected fewer than that")
    start = _possible(model, start)
    if start is Start.COMPACTED:
        pairs = compact(model, context_tokens, tokens, _talks(context_tokens, frame, shards))
    else:
        chosen = context_tokens[:tokens] if start is Start.FIRST_TOKENS else sampled(context_tokens, tokens, seed)
        context = read_context(model, chosen)
        pairs = [(k[None], v[None]) for k, v in zip(context.keys, context.values, strict=True)]
    _write(path, {PREFIX_TENSOR: prefix_of(pairs)}, moments=moments)
    return start


def sampled(tokens: Sequence[int], count: int, seed: int) -> list[int]:
    """The first token, and chunks from all over the text, one from each of its equal parts, in their order.

    Source: sampled chunk initialization (arXiv 2508.17032). The first token is the sink.

    >>> sampled(range(1000), 17, seed=1)
    [0, 115, 116, 219, 220, 349, 350, 409, 410, 576, 577, 740, 741, 815, 816, 903, 904]
    """
    chunks = min(SAMPLED_CHUNKS, count - 1)
    words = counter_words(f"start {seed}", chunks)
    found = [tokens[0]]
    for chunk in range(chunks):
        first, last = (1 + (len(tokens) - 1) * bound // chunks for bound in (chunk, chunk + 1))
        length = (count - 1) * (chunk + 1) // chunks - (count - 1) * chunk // chunks
        at = first + int(words[chunk]) % (last - first - length + 1)
        found.extend(tokens[at : at + length])
    return found


def prefix_of(pairs: Sequence[Pair]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """K, V [1, g, p, d] of each layer -> `prompt_embeddings` [p, L * 2 * g * d]."""
    halves = torch.stack([half[0].float() for pair in pairs for half in pair])  # [2L, g, p, d]
    flat = halves.permute(2, 0, 1, 3).reshape(halves.shape[2], -1)
    return np.ascontiguousarray(flat.cpu().numpy())


def _write(path: Path, parameters: Arrays, *, moments: bool) -> None:
    state = cold_state(parameters)
    write_state(path, state if moments else without_moments(state))


def _possible(model: CausalLM, start: Start) -> Start:
    if start is not Start.COMPACTED:
        return start
    try:
        check_compactable(model)
    except DoesNotFitError:
        return Start.FIRST_TOKENS
    return start


def _lora(model: CausalLM, adapter: AdapterSpec, seed: int) -> Arrays:
    """A from the seed, B nought: at first the model is what it was. A that stays as drawn is not in the state."""
    parameters: Arrays = {}
    for name, shape in expected_shapes(adapter, model).items():
        module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        if name.endswith(".lora_B.weight"):
            parameters[name] = np.zeros(shape, dtype=np.float32)
        elif adapter.frozen_a_seed is None:
            parameters[name] = seeded_a(seed, module, *shape)
    return parameters


def _talks(text: Sequence[int], frame: ChatFrame | None, shards: Sequence[Path]) -> list[Talk]:
    """Conversations from all shards in turn until there are tokens enough; else the text, read once more."""
    found: list[Talk] = []
    matched = 0
    if frame is not None:
        for talk in _conversations(frame, [read_shard(path) for path in shards]):
            if found and matched + talk.matched > MATCHED_TOKENS_MAX:
                break
            found.append(talk)
            matched += talk.matched
    again = tuple(text[:MATCHED_TOKENS_MAX])
    return found or [Talk(teacher=again, student=again, matched=len(again))]


def _conversations(frame: ChatFrame, shards: Sequence[Shard]) -> Iterator[Talk]:
    for number, shard in enumerate(shards):
        if shard.purpose is Purpose.HELD_OUT:
            raise InvalidError(f"shard {number}: these conversations are held out: a start must not know them")
    for index in range(max((len(shard) for shard in shards), default=0)):
        for shard in shards:
            if index < len(shard) and len(question := shard.question(index)) and len(shard.answer(index)) > 1:
                said = (*question.tolist(), *frame.student_after, *shard.answer(index)[:-1].tolist())
                yield Talk(
                    teacher=(
                        *frame.teacher_before,
                        *question.tolist(),
                        *frame.teacher_after,
                        *said[len(question) + len(frame.student_after) :],
                    ),
                    student=(*frame.student_before, *said),
                    matched=len(said),
                )
