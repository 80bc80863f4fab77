"""Studying can be replayed: honest conversations pass whatever made them, and each way to cheat is caught."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from memgrid.digest import digest_of
from memgrid.distill.audit import audit
from memgrid.distill.model import load_model
from memgrid.distill.study import study
from memgrid.errors import InvalidError
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.frame import FRAME_FILE
from memgrid.kinds.kind import Replica
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.shard import SHARD_FILE, Shard, make_shard, select, write_shard
from memgrid.kinds.study import parse_sketch, sketch_shard
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import Purpose
from memgrid.units import ComputeDtype, Output, ReasonCode
from memgrid_coordinator.heavy.calibration.weights import quantised
from tests.models import make_tiny_model
from tests.studies import CPU, DRAW, KIND, Studied, make_studied


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    return make_studied(tmp_path_factory.mktemp("study") / "tiny")


def with_answers(shard: Shard, change: Callable[[int, list[int], np.ndarray], tuple[list[int], np.ndarray]]) -> Shard:
    """Each conversation's answer and the likeliest tokens at each of its places, changed alike."""
    answers, tops, rows = [], [], []
    for index in range(len(shard)):
        part = shard.rows(index)
        answer, top = change(index, shard.answer(index).tolist(), shard.top_ids[part].copy())
        answers.append(answer)
        tops.append(top[: len(answer)])
        rows.append(np.arange(part.start, part.start + len(answer)))
    order = np.concatenate(rows)
    return make_shard(
        tokenizer=shard.tokenizer,
        vocab=shard.vocab,
        purpose=shard.purpose,
        questions=[shard.question(index).tolist() for index in range(len(shard))],
        answers=answers,
        top_ids=np.concatenate(tops),
        top_logprobs=shard.top_logprobs[order],
        tail=shard.tail[order],
    )


def test_conversations_are_what_the_unit_asks_for(grid: Studied) -> None:
    grid.check(grid.honest)
    assert len(grid.honest) == 16
    lengths = [len(grid.honest.question(index)) for index in range(16)]
    answers = [len(grid.honest.answer(index)) for index in range(16)]
    assert min(lengths) < 40 and min(answers) < 24, "some stop by themselves"
    assert max(answers) == 24, "some are cut"
    again = study(grid.model(), grid.spec, grid.frame, grid.tokens)
    assert sketch_shard(again) == sketch_shard(grid.honest)


def test_a_conversation_is_the_same_in_whichever_unit_it_stands(grid: Studied) -> None:
    later = grid.made(first=44, conversations=3)
    for index in range(3):
        assert later.question(index).tolist() == grid.honest.question(index + 4).tolist()
        assert later.answer(index).tolist() == grid.honest.answer(index + 4).tolist()


def test_held_out_conversations_are_others(grid: Studied) -> None:
    held_out = grid.made(purpose=Purpose.HELD_OUT)
    same = [grid.honest.question(i).tolist() == held_out.question(i).tolist() for i in range(16)]
    assert sum(same) < 4 and held_out.purpose is Purpose.HELD_OUT


@pytest.mark.parametrize("batch", [1, 5])
def test_honest_conversations_pass_whatever_the_batch(grid: Studied, batch: int) -> None:
    assert grid.audit(study(grid.model(), grid.spec, grid.frame, grid.tokens, batch=batch)).zone is Zone.PASS


def test_honest_conversations_pass_with_other_threads(grid: Studied) -> None:
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = study(grid.model(), grid.spec, grid.frame, grid.tokens)
    finally:
        torch.set_num_threads(former)
    assert grid.audit(made, draw=b"2" * 32).zone is Zone.PASS


@pytest.mark.parametrize(
    ("dtype", "claimed"), [(torch.bfloat16, ComputeDtype.BFLOAT16), (torch.float16, ComputeDtype.FLOAT16)]
)
def test_honest_conversations_pass_in_the_dtype_they_claim_and_no_finer(
    grid: Studied, dtype: torch.dtype, claimed: ComputeDtype
) -> None:
    made = study(grid.model(dtype), grid.spec, grid.frame, grid.tokens)
    for number in range(4):
        for again in (False, True):
            found = grid.audit(made, claimed=claimed, draw=number.to_bytes(32, "big"), again=again)
            assert found.zone is Zone.PASS
    assert_caught(grid.audit(made, claimed=ComputeDtype.FLOAT32), r"margin|log-probability difference")


def test_every_conversation_of_an_honest_unit_passes(grid: Studied) -> None:
    for index in range(16):
        assert grid.audit(grid.honest, draw=grid.draw_of(index)).zone is Zone.PASS


def test_the_audit_says_what_it_cost(grid: Studied) -> None:
    path = grid.inputs[FRAME_FILE].parent / "honest.safetensors"
    write_shard(path, grid.honest)
    found = audit(
        grid.spec,
        model_folder=grid.folder,
        inputs=grid.inputs,
        files={SHARD_FILE: path},
        compute_dtype=ComputeDtype.FLOAT32,
        draw=DRAW,
        tolerances=BUILT_IN,
    )
    assert set(found.statistics) == set(found.limits)
    assert 0 < found.flops < 0.3 * KIND.flops(grid.spec, grid.geometry)


def assert_caught(found: Audit, words: str) -> None:
    assert found.zone is Zone.FAULT
    assert re.search(words, found.in_words())


CHEATS: dict[str, Callable[[Studied], Shard]] = {
    "another temperature": lambda grid: grid.made(temperature=0.5),
    "another seed": lambda grid: grid.made(seed=6),
    "a neighbour's conversations": lambda grid: grid.made(first=56),
    "held-out conversations": lambda grid: dataclasses.replace(
        grid.made(purpose=Purpose.HELD_OUT), purpose=Purpose.TRAIN
    ),
    "greedy questions": lambda grid: grid.made(temperature=1e-6),
    "the text not read": lambda grid: study(grid.model(), grid.spec, grid.frame, grid.tokens[:3]),
    "half of the text": lambda grid: study(grid.model(), grid.spec, grid.frame, grid.tokens[: len(grid.tokens) // 2]),
    "eight-bit weights": lambda grid: study(quantised(grid.folder), grid.spec, grid.frame, grid.tokens),
    "another model's weights": lambda grid: study(
        load_model(make_tiny_model(grid.folder.parent / "other", seed=1, layers=3), torch.float32, CPU),
        grid.spec,
        grid.frame,
        grid.tokens,
    ),
    "log-probabilities off by a little": lambda grid: dataclasses.replace(
        grid.honest, top_logprobs=(grid.honest.top_logprobs * 1.001).astype(np.float16).astype(np.float32)
    ),
    "conversations in another order": lambda grid: select(grid.honest, list(range(15, -1, -1))),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_caught_by_the_replay(grid: Studied, cheat: str) -> None:
    shard = CHEATS[cheat](grid)
    for number in range(4):
        draw = number.to_bytes(32, "big")
        assert_caught(grid.audit(shard, draw=draw), "at conversation")
    assert_caught(grid.audit(shard, draw=draw, again=True), "at conversation")


def test_one_token_in_a_hundred_drawn_at_random_is_caught_where_it_stands(grid: Studied) -> None:
    rng = np.random.default_rng(1)
    questions = grid.honest.question_ids.copy()
    changed = rng.choice(len(questions), size=max(1, len(questions) // 100), replace=False)
    questions[changed] = rng.choice([token for token in range(3, 384) if token not in grid.frame.stops])
    shard = dataclasses.replace(grid.honest, question_ids=questions)
    for place in changed:
        index = int(np.searchsorted(grid.honest.question_offsets, place, side="right")) - 1
        assert_caught(grid.audit(shard, draw=grid.draw_of(index)), rf"(margin|begin with the words).*n {index}$")


def test_an_answer_whose_token_was_exchanged_is_caught(grid: Studied) -> None:
    def exchange(index: int, answer: list[int], top: np.ndarray) -> tuple[list[int], np.ndarray]:
        place = len(answer) // 2
        top[place, [0, 1]] = top[place, [1, 0]]
        answer[place] = int(top[place, 0])
        return answer, top

    shard = with_answers(grid.honest, exchange)
    assert_caught(grid.audit(shard), r"answer margin|log-probability")


def test_an_answer_that_stops_where_the_model_went_on_is_caught(grid: Studied) -> None:
    longest = max(range(16), key=lambda index: len(grid.honest.answer(index)))

    def stop_early(index: int, answer: list[int], top: np.ndarray) -> tuple[list[int], np.ndarray]:
        if index != longest:
            return answer, top
        stop = next(token for token in grid.frame.stops if token not in top[5])
        top[5, 0] = stop
        return [*answer[:5], stop], top

    shard = with_answers(grid.honest, stop_early)
    grid.check(shard)
    assert_caught(grid.audit(shard, draw=grid.draw_of(longest)), f"margin.*conversation {longest}$")


def test_a_question_that_ends_where_the_noise_went_on_is_caught(grid: Studied) -> None:
    longest = max(range(16), key=lambda index: len(grid.honest.question(index)))
    questions = [grid.honest.question(index).tolist() for index in range(16)]
    questions[longest] = questions[longest][:-3]
    shard = make_shard(
        tokenizer=grid.honest.tokenizer,
        vocab=grid.honest.vocab,
        purpose=grid.honest.purpose,
        questions=questions,
        answers=[grid.honest.answer(index).tolist() for index in range(16)],
        top_ids=grid.honest.top_ids,
        top_logprobs=grid.honest.top_logprobs,
        tail=grid.honest.tail,
    )
    grid.check(shard)
    found = grid.audit(shard, draw=grid.draw_of(longest))
    assert_caught(found, f"conversation {longest}$")
    assert found.statistics["question margin"] > 2 * found.limits["question margin"]


def test_answers_that_break_off_are_refused_by_their_form(grid: Studied) -> None:
    with pytest.raises(RefusedError, match="breaks off after 3 tokens") as caught:
        grid.check(with_answers(grid.honest, lambda index, answer, top: (answer[:3], top)))
    assert caught.value.reason.code is ReasonCode.WRONG_SHAPE


def test_answers_that_are_not_their_own_likeliest_are_refused(grid: Studied) -> None:
    ids = grid.honest.answer_ids.copy()
    ids[0] = grid.honest.top_ids[0, 1]
    with pytest.raises(RefusedError, match=r"not its own likeliest|after it has stopped|breaks off"):
        grid.check(dataclasses.replace(grid.honest, answer_ids=ids))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tokenizer": digest_of(b"other")}, ReasonCode.VOCABULARY_MISMATCH),
        ({"vocab": 385}, ReasonCode.VOCABULARY_MISMATCH),
        ({"purpose": Purpose.HELD_OUT}, ReasonCode.WRONG_SHAPE),
    ],
)
def test_a_shard_of_another_kind_of_talk_is_refused(
    grid: Studied, change: dict[str, object], code: ReasonCode
) -> None:
    with pytest.raises(RefusedError) as caught:
        grid.check(dataclasses.replace(grid.honest, **change))  # type: ignore[arg-type]
    assert caught.value.reason.code is code


def test_fewer_conversations_than_asked_for_are_refused(grid: Studied) -> None:
    with pytest.raises(RefusedError, match="expected 16 conversations"):
        grid.check(select(grid.honest, list(range(15))))


def test_another_sketch_than_the_files_is_refused(grid: Studied) -> None:
    with pytest.raises(RefusedError) as caught:
        grid.check(grid.honest, sketch=sketch_shard(select(grid.honest, list(range(15, -1, -1)))))
    assert caught.value.reason.code is ReasonCode.SKETCH_MISMATCH


def test_a_frame_of_more_tokens_than_the_model_knows_is_refused(grid: Studied) -> None:
    with pytest.raises(InvalidError, match="a vocabulary of 500 tokens, but the model knows 384"):
        study(grid.model(), grid.spec, dataclasses.replace(grid.frame, vocab=500), grid.tokens)


def test_replicas_agree_where_their_talk_is_the_same(grid: Studied) -> None:
    one = Replica(sketch=sketch_shard(grid.honest), compute_dtype=ComputeDtype.FLOAT32)
    same = KIND.compare(grid.spec, one, one, grid.geometry, BUILT_IN)
    assert (same.distance, same.exceeded) == (0.0, None)
    other = Replica(sketch=sketch_shard(grid.made(seed=6)), compute_dtype=ComputeDtype.FLOAT32)
    assert "conversations that differ" in str(KIND.compare(grid.spec, one, other, grid.geometry, BUILT_IN).exceeded)
    auto = dataclasses.replace(one, compute_dtype=ComputeDtype.AUTO)
    assert KIND.compare(grid.spec, one, auto, grid.geometry, BUILT_IN).distance == float("inf")
    likelier = dataclasses.replace(grid.honest, top_logprobs=grid.honest.top_logprobs * 0.5)
    boasting = Replica(sketch=sketch_shard(likelier), compute_dtype=ComputeDtype.FLOAT32)
    assert "log-likelihood" in str(KIND.compare(grid.spec, one, boasting, grid.geometry, BUILT_IN).exceeded)


def test_the_door_takes_one_shard_of_a_possible_size_with_its_sketch(grid: Studied) -> None:
    path = grid.inputs[FRAME_FILE].parent / "sized.safetensors"
    write_shard(path, grid.honest)
    size = path.stat().st_size
    good = Output(name=SHARD_FILE, digest=digest_of(b""), size_bytes=size)
    sketch = sketch_shard(grid.honest)
    KIND.check_claim(grid.spec, [good], sketch, grid.geometry)
    assert len(sketch) < 1000
    for outputs in ([], [good, good], [dataclasses.replace(good, name="other")]):
        with pytest.raises(RefusedError, match="expected one"):
            KIND.check_claim(grid.spec, outputs, sketch, grid.geometry)
    with pytest.raises(RefusedError, match="at most"):
        KIND.check_claim(grid.spec, [dataclasses.replace(good, size_bytes=10 * size)], sketch, grid.geometry)
    for bad in (b"", sketch[:-1], sketch_shard(select(grid.honest, [0])), sketch + bytes(5000)):
        with pytest.raises(RefusedError) as caught:
            KIND.check_claim(grid.spec, [good], bad, grid.geometry)
        assert caught.value.reason.code is ReasonCode.BAD_SKETCH


def test_a_sketch_with_a_number_that_is_none_is_refused(grid: Studied) -> None:
    sketch = load(sketch_shard(grid.honest))
    sketch["likelihood"] = np.full(16, np.nan, dtype=np.float32)
    with pytest.raises(RefusedError) as caught:
        parse_sketch(save(sketch), 16)
    assert caught.value.reason.code is ReasonCode.NOT_FINITE


def test_one_conversation_more_costs_more_and_so_does_a_longer_text(grid: Studied) -> None:
    price = KIND.flops(grid.spec, grid.geometry)
    assert KIND.flops(dataclasses.replace(grid.spec, conversations=17), grid.geometry) > price
    assert KIND.flops(dataclasses.replace(grid.spec, token_count=500), grid.geometry) > price


def test_progress_is_told_and_ends_at_one(grid: Studied) -> None:
    told: list[int] = []
    study(
        grid.model(), grid.spec, grid.frame, grid.tokens, batch=8, between=lambda thirds, shard: told.append(thirds)
    )
    assert told == [8, 24, 32, 48]
