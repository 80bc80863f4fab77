"""Study and score as hosts do, honestly or not, and replay it as the grid does.

One text, conversations about it, and scores of other conversations with a prefix: the units of a small distillation.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save

from memgrid.campaign_distill import Start
from memgrid.digest import digest_of, digest_of_file, token_bytes, token_ids
from memgrid.distill.adapters import load_adapter
from memgrid.distill.audit import audit
from memgrid.distill.evaluate import evaluate
from memgrid.distill.evaluate_replay import audited_items
from memgrid.distill.model import load_model
from memgrid.distill.starts import start_state
from memgrid.distill.study import study
from memgrid.kinds.audit import Audit
from memgrid.kinds.built_in_rows import CHECKS, RANK_EDGE
from memgrid.kinds.evaluate import ADAPTER_FILE, SCORES_FILE, SCORES_FORMAT, read_items, scores_bytes, shard_name
from memgrid.kinds.frame import FRAME_FILE, ChatFrame, build_frame, context_ids
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import SHARD_FILE, Shard, write_shard
from memgrid.kinds.study import audited
from memgrid.kinds.tolerances import row_key
from memgrid.specs import AdapterKind, AdapterSpec, EvaluateSpec, Purpose, StudySpec
from memgrid.units import ComputeDtype
from memgrid_coordinator.heavy.calibration.orders import LessonOrder
from memgrid_coordinator.heavy.calibration.probing import UNIT_LIMITS
from memgrid_coordinator.heavy.calibration.replaying import claims, shares_of
from memgrid_coordinator.heavy.calibration.texts import passages
from memgrid_coordinator.heavy.calibration.weights import model_of
from memgrid_coordinator.heavy.plan import load_tokenizer
from memgrid_coordinator.policy.calibrating import Samples

PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=16, frozen_tokens=1)
_PIECES = 8
"""So many audits of each answer; limits are fitted to the first half, which draws from half of the conversations."""
_QUESTION_TOKENS, _ANSWER_TOKENS, _TOP_K = 24, 24, 12
_HELD_OUT = "held-out.safetensors"


def prepare(order: LessonOrder) -> None:
    """Write what all ways read: the frame, the text, held-out conversations, a prefix.

    Raises InvalidError for a model that can't converse: no template, no tokenizer to build a frame with.
    """
    tokenizer = load_tokenizer(order.model_folder)
    frame = build_frame(tokenizer)
    lines = passages(order.text)
    random.Random(order.seed).shuffle(lines)
    tokens = context_ids(tokenizer, "\n".join(lines))[: order.sizes.text_tokens]
    (order.folder / FRAME_FILE).write_bytes(frame.to_bytes())
    (order.folder / TOKENS_FILE).write_bytes(token_bytes(tokens))
    model = load_model(order.model_folder, torch.float32, torch.device("cpu"))
    spec = dataclasses.replace(study_spec(order), purpose=Purpose.HELD_OUT)
    write_shard(order.folder / _HELD_OUT, study(model, spec, frame, tokens))
    start_state(model, PREFIX, Start.FIRST_TOKENS, tokens, order.seed, order.folder / ADAPTER_FILE)


def study_and_replay(order: LessonOrder) -> list[Samples]:
    """Conversations in one way, and audits of them under every dtype that way may claim."""
    model, _ = model_of(order.model_folder, order.way, order.cheat, _texts(order))
    spec, frame, tokens = study_spec(order), _frame(order), token_ids((order.folder / TOKENS_FILE).read_bytes())
    asked = dataclasses.replace(spec, **OTHER_STUDY.get(order.cheat, {}))  # type: ignore[arg-type]
    shard = study(model, asked, frame, tokens)
    path = order.folder / f"shard-{order.number}.safetensors"
    write_shard(path, _edited(shard) if order.cheat == "answers edited" else shard)
    inputs = {name: order.folder / name for name in (FRAME_FILE, TOKENS_FILE)}

    def replay(draw: bytes, claim: ComputeDtype) -> Audit:
        return audit(
            spec,
            model_folder=order.model_folder,
            inputs=inputs,
            files={SHARD_FILE: path},
            compute_dtype=claim,
            draw=draw,
            tolerances=UNIT_LIMITS,
        )

    draws = _draws(spec.conversations, lambda draw: audited(spec, draw))
    return list(_samples(order, "study.replay", draws, replay))


def score_and_replay(order: LessonOrder) -> list[Samples]:
    """Scores of the held-out conversations in one way, and audits of them."""
    model, _ = model_of(order.model_folder, order.way, order.cheat, _texts(order))
    inputs = {
        FRAME_FILE: order.folder / FRAME_FILE,
        ADAPTER_FILE: order.folder / ADAPTER_FILE,
        shard_name(0): order.folder / _HELD_OUT,
    }
    spec = _score_spec(order, inputs)
    adapter = load_adapter(inputs[ADAPTER_FILE], PREFIX, model)
    content = scores_bytes(evaluate(model, _frame(order), read_items(spec, inputs), adapter))
    if order.cheat in EDITED_SCORES:
        tensors = {name: array.copy() for name, array in load(content).items()}
        EDITED_SCORES[order.cheat](tensors)
        content = save(tensors, {"format": SCORES_FORMAT})
    path = order.folder / f"scores-{order.number}.safetensors"
    path.write_bytes(content)

    def replay(draw: bytes, claim: ComputeDtype) -> Audit:
        return audit(
            spec,
            model_folder=order.model_folder,
            inputs=inputs,
            files={SCORES_FILE: path},
            compute_dtype=claim,
            draw=draw,
            tolerances=UNIT_LIMITS,
        )

    draws = _draws(spec.items, lambda draw: audited_items(spec, draw))
    return list(_samples(order, "evaluate.replay", draws, replay))


def _score_spec(order: LessonOrder, inputs: Mapping[str, Path]) -> EvaluateSpec:
    return EvaluateSpec(
        model=order.model,
        frame=digest_of_file(inputs[FRAME_FILE]),
        adapter=PREFIX,
        adapter_file=digest_of_file(inputs[ADAPTER_FILE]),
        shards=(digest_of_file(inputs[shard_name(0)]),),
        first=0,
        items=order.sizes.conversations,
        compute_dtype=ComputeDtype.AUTO,
    )


OTHER_STUDY: Mapping[str, dict[str, object]] = {
    "another temperature": {"temperature": 0.8},
    "another seed": {"seed": 7},
}
"""What a cheat studies instead of its unit."""
EDITED_SCORES: Mapping[str, Callable[[dict[str, np.ndarray]], object]] = {
    "a better cube": lambda found: found["cube.nll"].__imul__(np.float32(0.97)),
    "a worse bare model": lambda found: found["none.nll"].__imul__(np.float32(1.03)),
    "less divergence": lambda found: found["cube.kl"].__imul__(np.float32(0.8)),
    "the bare model for the cube": lambda found: found.update(
        {f"cube.{what}": found[f"none.{what}"] for what in ("nll", "kl", "correct")}
    ),
}
"""Scores that were changed after they were computed."""


def _samples(
    order: LessonOrder, check: str, draws: list[bytes], replay: Callable[[bytes, ComputeDtype], Audit]
) -> Iterator[Samples]:
    """An audit that found a rule broken is infinitely far in every statistic."""
    names = tuple(name for name in CHECKS[check] if name != RANK_EDGE)
    half = len(draws) // 2
    pieces = [place - half if place < half else order.sizes.fit_chunks + place for place in range(len(draws))]
    for claim, called in claims(order.way, order.cheat):
        shares = [shares_of(replay(draw, claim)) for draw in draws]
        yield Samples(
            row=row_key(check, claim, ComputeDtype.FLOAT32),
            cheat=called,
            ways=order.way.name,
            names=names,
            values=np.array([[found.get(name, np.inf if not found else 0.0) for name in names] for found in shares]),
            pieces=np.array(pieces),
        )


def _draws(count: int, picked: Callable[[bytes], tuple[int, ...]]) -> list[bytes]:
    """Draws that pick from the first half of the conversations, then as many that pick from the second."""
    found: dict[bool, list[bytes]] = {False: [], True: []}
    number = 0
    while min(map(len, found.values())) < _PIECES // 2:
        draw = sha256(f"draw {number}".encode()).digest()
        number += 1
        halves = {index >= count // 2 for index in picked(draw)}
        if len(halves) == 1 and len(found[later := halves.pop()]) < _PIECES // 2:
            found[later].append(draw)
    return [*found[False], *found[True]]


def _edited(shard: Shard) -> Shard:
    """In the middle of every answer the second likeliest token, said to be the likeliest."""
    top, answers = shard.top_ids.copy(), shard.answer_ids.copy()
    for index in range(len(shard)):
        rows = shard.rows(index)
        if rows.stop > rows.start:
            place = (rows.start + rows.stop) // 2
            top[place, [0, 1]] = top[place, [1, 0]]
            answers[place] = top[place, 0]
    return dataclasses.replace(shard, top_ids=top, answer_ids=answers)


def study_spec(order: LessonOrder) -> StudySpec:
    """The unit of study that every way computes."""
    tokens = (order.folder / TOKENS_FILE).read_bytes()
    frame = _frame(order)
    return StudySpec(
        model=order.model,
        frame=digest_of(frame.to_bytes()),
        tokens=digest_of(tokens),
        token_count=len(token_ids(tokens)),
        purpose=Purpose.TRAIN,
        seed=order.seed,
        first=0,
        conversations=order.sizes.conversations,
        temperature=0.6,
        question_tokens=_QUESTION_TOKENS,
        answer_tokens=_ANSWER_TOKENS,
        top_k=min(_TOP_K, frame.vocab),
        compute_dtype=ComputeDtype.AUTO,
    )


def _frame(order: LessonOrder) -> ChatFrame:
    return ChatFrame.from_bytes((order.folder / FRAME_FILE).read_bytes())


def _texts(order: LessonOrder) -> list[list[int]]:
    return [token_ids((order.folder / TOKENS_FILE).read_bytes())]
