"""Answers piece by piece: what generate would say, whole characters, stop strings, and cubes that come and go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memgrid.cube.cube import MemCube
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.errors import InvalidError
from memgrid.serving.answering import Answerer, Finish, TooLongError
from memgrid.serving.loading import Loaded, load
from memgrid.serving.sampling import Sampler, Settings
from memgrid.serving.writing import StopWords, TextStream
from memgrid.signing import SigningKey
from memgrid.specs import AdapterSpec
from tests.adapters import LORA, PREFIX, make_parameter_cube

KEY = SigningKey.generate()
QUESTION = "When does the valve open?"
SHORT = Settings(max_tokens=12)
Made = Callable[..., MemCube]


@pytest.fixture(scope="module")
def loaded(tiny_model_folder: Path) -> Loaded:
    return load(str(tiny_model_folder))


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder, "tiny")


@pytest.fixture(scope="module")
def cube_of(tmp_path_factory: pytest.TempPathFactory, loaded: Loaded, base: ModelIdentity) -> Made:
    def make(adapter: AdapterSpec, seed: int = 0) -> MemCube:
        folder = tmp_path_factory.mktemp("cubes") / "cube"
        make_parameter_cube(folder, adapter, loaded.model, base, KEY, seed=seed, name=f"tests/cube-{seed}")
        return MemCube.open(folder, trusted=True)

    return make


def said(answerer: Answerer, turns: Any, *cubes: MemCube, settings: Settings = SHORT) -> tuple[str, Finish]:
    *pieces, finish = answerer.answer(turns, cubes, settings)
    assert isinstance(finish, Finish) and all(isinstance(piece, str) and piece for piece in pieces)
    return "".join(str(piece) for piece in pieces), finish


def generated(loaded: Loaded, prompt: Any) -> str:
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def test_an_answer_is_what_generate_says(loaded: Loaded, cube_of: Made) -> None:
    answerer = Answerer(loaded)
    chat = [{"role": "user", "content": QUESTION}]
    plain = loaded.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    without, finish = said(answerer, QUESTION)
    assert without == generated(loaded, plain)
    assert (finish.prompt_tokens, finish.cached_tokens) == (plain["input_ids"].shape[1], 0)
    answers = {without}
    for cube in (cube_of(PREFIX, 1), cube_of(LORA, 2)):
        found, finish = said(answerer, QUESTION, cube)
        answerer.close()
        with cube.attach(loaded.model) as memory:
            assert found == generated(loaded, memory.prompt(loaded.tokenizer, QUESTION))
            assert finish.cached_tokens == memory.positions
        answers.add(found)
    assert len(answers) == 3


def test_a_conversation_that_goes_on_is_not_read_again(loaded: Loaded, cube_of: Made) -> None:
    cube, answerer = cube_of(PREFIX), Answerer(loaded)
    turns = [{"role": "user", "content": QUESTION}]
    for _ in range(3):
        text, _ = said(answerer, turns, cube)
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "And when does it close?"}]
    found, finish = said(answerer, turns, cube)
    fresh, first = said(Answerer(loaded), turns, cube)
    assert found == fresh
    assert first.cached_tokens == PREFIX.virtual_tokens < finish.cached_tokens < finish.prompt_tokens


def test_cubes_come_and_go_between_answers(loaded: Loaded, cube_of: Made) -> None:
    prefix, lora, answerer = cube_of(PREFIX, 1), cube_of(LORA, 2), Answerer(loaded)
    rounds = [(), (prefix,), (lora,), (prefix, lora), (prefix,), (), (lora,), ()]
    first = {cubes: said(Answerer(loaded), QUESTION, *cubes)[0] for cubes in [(), (prefix,)]}
    found: dict[Any, set[str]] = {}
    for cubes in rounds:
        found.setdefault(cubes, set()).add(said(answerer, QUESTION, *cubes)[0])
    assert all(len(texts) == 1 for texts in found.values())
    assert found[()] == {first[()]} and found[(prefix,)] == {first[(prefix,)]}
    assert len(set.union(*found.values())) == 4


def test_closing_leaves_the_model_as_it_was(loaded: Loaded, cube_of: Made) -> None:
    ids = torch.tensor([[4, 5, 6]])
    with torch.inference_mode():
        before = loaded.model(ids).logits
        answerer = Answerer(loaded)
        said(answerer, QUESTION, cube_of(LORA))
        assert not torch.equal(loaded.model(ids).logits, before)
        answerer.close()
        assert torch.equal(loaded.model(ids).logits, before)


def test_an_answer_that_is_left_does_not_spoil_the_next(loaded: Loaded, cube_of: Made) -> None:
    cube, answerer = cube_of(PREFIX), Answerer(loaded)
    whole, _ = said(answerer, QUESTION, cube)
    left = answerer.answer(QUESTION, [cube], SHORT)
    next(left)
    left.close()
    assert said(answerer, QUESTION, cube)[0] == whole
    asked: list[int] = []
    cancelled = answerer.answer(QUESTION, [cube], SHORT, lambda: len(asked) > 2 or bool(asked.append(1)))
    assert list(cancelled)[-1].reason == "cancelled"  # type: ignore[union-attr]


def test_answers_end_at_their_limit_and_at_stop_strings(loaded: Loaded) -> None:
    answerer = Answerer(loaded)
    text, finish = said(answerer, QUESTION)
    assert finish.reason == "length" and finish.answer_tokens == 12
    word = text[3:5]
    cut, finish = said(answerer, QUESTION, settings=Settings(max_tokens=12, stop=("never", word)))
    assert (cut, finish.reason) == (text[: text.index(word)], "stop")


def test_the_templates_end_ends_an_answer(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    end = loaded.tokenizer.eos_token_id
    drawn = iter([40, 41, end, 42])
    monkeypatch.setattr(Sampler, "choose", lambda self, logits: next(drawn))
    text, finish = said(Answerer(loaded), QUESTION)
    assert (finish.reason, finish.answer_tokens) == ("stop", 3)
    assert text == loaded.tokenizer.decode([40, 41])


def test_what_does_not_fit_the_context_is_refused(loaded: Loaded) -> None:
    answerer = Answerer(loaded)
    with pytest.raises(TooLongError, match=r"takes \d+ tokens, the model reads at most 2048"):
        said(answerer, "valve " * 4000)
    with pytest.raises(InvalidError, match="expected some text from the user"):
        said(answerer, "")
    assert said(answerer, QUESTION)[0]


def test_a_seed_repeats_chance_and_disturbs_no_other(loaded: Loaded) -> None:
    answerer = Answerer(loaded)

    def draw(seed: int | None) -> str:
        return said(answerer, QUESTION, settings=Settings(max_tokens=12, temperature=1.5, top_p=0.9, seed=seed))[0]

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)
    assert torch.equal(torch.rand(3), expected)


def test_the_nucleus_keeps_the_likeliest_alone() -> None:
    logits = torch.log(torch.tensor([0.05, 0.5, 0.3, 0.15]))
    narrow = Sampler(Settings(temperature=1, top_p=0.6, seed=1), torch.device("cpu"))
    assert {narrow.choose(logits) for _ in range(200)} == {1, 2}
    single = Sampler(Settings(temperature=1, top_p=0.01, seed=1), torch.device("cpu"))
    assert {single.choose(logits) for _ in range(50)} == {1}
    counts = torch.bincount(torch.tensor([narrow.choose(logits) for _ in range(4000)]), minlength=4)
    assert abs(counts[1] / 4000 - 0.5 / 0.8) < 0.03
    greedy = Sampler(Settings(), torch.device("cpu"))
    assert greedy.choose(logits) == 1


@pytest.mark.parametrize("text", ["plain words here", "héllo wörld — ≤ 3 bar", "😀 two 👩‍🚀 pictures", "漢字かな"])
def test_text_comes_in_whole_characters_and_adds_up(loaded: Loaded, text: str) -> None:
    stream = TextStream(loaded.tokenizer)
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [stream.add(token) for token in ids]
    assert not any("�" in piece for piece in pieces)
    assert "".join(pieces) + stream.rest() == text


def test_half_a_character_at_the_end_is_shown_as_such(loaded: Loaded) -> None:
    ids = loaded.tokenizer("a😀", add_special_tokens=False)["input_ids"]
    stream = TextStream(loaded.tokenizer)
    assert "".join(stream.add(token) for token in ids[:-1]) == "a"
    assert stream.rest() == "�"


def test_stop_strings_are_found_across_pieces_and_never_shown() -> None:
    stop = StopWords(["</answer>", "\n\n"])
    assert [stop.add(piece) for piece in ("yes <", "/an", "d </answer", "> no")] == ["yes ", "", "</and ", ""]
    assert stop.is_stopped and stop.add("more") == "" and stop.rest() == ""
    other = StopWords(["END"])
    assert other.add("the E") + other.rest() == "the E" and not other.is_stopped


def test_models_are_named_and_refused_in_one_line(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert load(str(tiny_model_folder)).name == tiny_model_folder.name
    with pytest.raises(InvalidError, match=r"^--model .*: expected a model's folder or name"):
        load(str(tmp_path))
    with pytest.raises(InvalidError, match=r"^--device: expected a device such as cpu"):
        load(str(tiny_model_folder), device="abacus")


def test_a_base_model_without_template_answers_lines(tiny_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.chat_template = None
    answerer = Answerer(Loaded(name="bare", model=model, tokenizer=tokenizer))
    _, finish = said(answerer, QUESTION)
    assert finish.prompt_tokens == len(tokenizer(f"Question: {QUESTION}\nAnswer:")["input_ids"])
