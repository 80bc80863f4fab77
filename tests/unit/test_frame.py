"""A chat template taken apart gives, put together, exactly what the template writes."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memgrid.cube.manifest import Wrap
from memgrid.cube.wrap import digest_of_tokenizer, document_ids, question_ids
from memgrid.errors import InvalidError
from memgrid.kinds.asks import ASK, FAMILIES, every_opening
from memgrid.kinds.frame import FRAME_BYTES_MAX, ChatFrame, build_frame, context_ids
from tests.models import make_tokenizer

QUESTION = "When does the valve open, and why?"
TEXT = "The manual says that the valve opens at three bar."
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(params=["plain chat", "default system message", "no system message"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = make_tokenizer()
    made.chat_template = {
        "plain chat": made.chat_template, "default system message": SMOLLM2, "no system message": NO_SYSTEM
    }[request.param]  # fmt: skip
    return made


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_students_prompt_is_what_the_template_makes_of_the_question(tokenizer: Any) -> None:
    frame = build_frame(tokenizer)
    turns = [{"role": "user", "content": QUESTION}]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert (*frame.student_before, *ids_of(tokenizer, QUESTION), *frame.student_after) == tuple(rendered)


def test_the_teachers_prompt_is_what_a_reader_of_the_document_asks() -> None:
    for template in (None, SMOLLM2):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template or tokenizer.chat_template
        frame = build_frame(tokenizer)
        asked = (*frame.teacher_before, *ids_of(tokenizer, QUESTION), *frame.teacher_after)
        assert asked == tuple(question_ids(tokenizer, QUESTION, Wrap.CHAT))
        assert context_ids(tokenizer, TEXT) == document_ids(tokenizer, TEXT, Wrap.CHAT)


def test_without_a_place_for_the_document_it_stands_bare_and_the_beginning_comes_once() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    frame, context = build_frame(tokenizer), context_ids(tokenizer, TEXT)
    assert context == document_ids(tokenizer, TEXT, Wrap.PLAIN)
    assert tokenizer.decode(frame.student_before).startswith("<|im_start|><|im_start|>user")
    assert tokenizer.decode(frame.teacher_before) == "<|im_start|>user\n"


def test_a_base_model_gets_lines_that_end_with_the_line() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    frame = build_frame(tokenizer)
    line_end = ids_of(tokenizer, "\n")
    assert tokenizer.decode(frame.student_before) == "Question:"
    assert tokenizer.decode(frame.teacher_after) == "\nAnswer:"
    assert set(line_end) < set(frame.stops) and tokenizer.eos_token_id in frame.stops


def test_asks_bring_the_first_words_of_their_questions(tokenizer: Any) -> None:
    frame = build_frame(tokenizer)
    assert len(frame.asks) == len(frame.openings) == len(every_opening()) == 60
    for place, opening in enumerate(every_opening()):
        assert ASK in tokenizer.decode(frame.asks[place])
        assert tokenizer.decode(frame.opening(place)) == opening
    assert frame.tokenizer == digest_of_tokenizer(tokenizer)
    assert frame.vocab == len(tokenizer)
    assert tokenizer.eos_token_id in frame.stops


def test_each_family_is_drawn_equally_often() -> None:
    places = every_opening()
    assert [sum(places.count(opening) for opening in family) for family in FAMILIES] == [12] * 5
    for family in FAMILIES:
        assert len({places.count(opening) for opening in family}) == 1


def test_a_frame_survives_its_file(tokenizer: Any) -> None:
    frame = build_frame(tokenizer)
    assert ChatFrame.from_bytes(frame.to_bytes()) == frame
    assert build_frame(tokenizer).to_bytes() == frame.to_bytes()


def test_a_frame_without_openings_has_none() -> None:
    frame = dataclasses.replace(build_frame(make_tokenizer()), openings=())
    assert ChatFrame.from_bytes(frame.to_bytes()).opening(3) == ()


@cache
def good() -> bytes:
    return build_frame(make_tokenizer()).to_bytes()


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(good()), **fields}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "frame.json"),
        (b"{}", "frame.json"),
        (b"\xff", "frame.json"),
        (b"{" + b" " * FRAME_BYTES_MAX + b"}", "at most"),
        (b'{"format":"memgrid.frame.v2"}', "expected format memgrid.frame.v1"),
        (changed(stops=[]), "one at least that stops"),
        (changed(stops=[10**6]), "expected tokens below"),
        (changed(asks=[[-1]], openings=[]), "expected tokens below"),
        (changed(asks=[["1"]], openings=[]), "expected lists of token ids"),
        (changed(asks=[], openings=[]), "expected seed prompts"),
        (changed(asks=[[]], openings=[]), "expected seed prompts"),
        (changed(openings=[[1]]), "an opening for each"),
        (changed(more=[1]), "TypeError"),
    ],
)
def test_what_is_no_frame_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(InvalidError, match=message) as caught:
        ChatFrame.from_bytes(content)
    assert "\n" not in str(caught.value)


def test_a_template_that_changes_messages_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    with pytest.raises(InvalidError, match="each message once, as it is"):
        build_frame(tokenizer)


@pytest.mark.model
def test_the_real_models_template_keeps_its_default_system_message() -> None:
    from transformers import AutoTokenizer

    folder = Path(__file__).resolve().parents[2] / ".cache" / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip("run scripts/prepare_model.py first")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    frame = build_frame(tokenizer)
    assert tokenizer.decode(frame.student_before).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named"
    )
    assert tokenizer.decode(frame.teacher_before) == "<|im_start|>user\n"
    turns = [{"role": "user", "content": QUESTION}]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert (*frame.student_before, *ids_of(tokenizer, QUESTION), *frame.student_after) == tuple(rendered)
