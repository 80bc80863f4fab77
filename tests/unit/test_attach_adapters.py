"""Adapters attached by memgrid do what PEFT does, also several at once, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import memgrid
from memgrid.cube.cube import MemCube
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.manifest import Wrap
from memgrid.cube.rerotate import inverse_frequencies, rerotate
from memgrid.errors import DoesNotFitError, InvalidError, NotVerifiedError
from memgrid.signing import SigningKey
from memgrid.specs import AdapterSpec
from tests.adapters import LORA, PREFIX, make_parameter_cube
from tests.cubes import make_cube
from tests.models import make_tiny_model

# PEFT asks transformers something that it now calls by another name; our files have no part in it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

KEY = SigningKey.generate()
SEEDED = replace(LORA, frozen_a_seed=5)
QUESTION = "When does the valve open?"
GREEDY = {"max_new_tokens": 12, "do_sample": False}
IDS = torch.tensor([[5, 9, 17, 33, 2, 81]])
Made = Callable[..., MemCube]


@pytest.fixture
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder, "tiny")


@pytest.fixture
def cube_of(tmp_path: Path, model: Any, base: ModelIdentity) -> Made:
    def make(adapter: AdapterSpec, seed: int = 0) -> MemCube:
        name = f"{adapter.kind}-{seed}"
        make_parameter_cube(tmp_path / name, adapter, model, base, KEY, seed=seed, name=f"tests/{name}")
        cube = MemCube.open(tmp_path / name)
        cube.verify([KEY.public_key])
        return cube

    return make


def logits(model: Any, cache: Any = None) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, past_key_values=cache).logits[0]


@pytest.mark.parametrize(
    "adapter", [PREFIX, LORA, replace(LORA, frozen_a_seed=5)], ids=["prefix", "lora", "frozen_a"]
)
def test_attaching_is_what_peft_does(
    cube_of: Made, model: Any, tokenizer: Any, tiny_model_folder: Path, adapter: AdapterSpec
) -> None:
    cube = cube_of(adapter)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    theirs = PeftModel.from_pretrained(theirs, cube.path).eval()
    with torch.inference_mode():
        expected = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[0]
    bare = logits(model)
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with cube.attach(model) as memory:
        found = logits(model, memory.cache())
        mine = memory.prompt(tokenizer, QUESTION)
        answer = model.generate(**mine, **GREEDY)[0, mine["input_ids"].shape[1] :]
    assert (found - expected).abs().max() <= 1e-4
    assert (bare - expected).abs().max() > 0.1
    answer_of_peft = theirs.generate(**prompt, **GREEDY)[0, prompt["input_ids"].shape[1] :]
    assert answer.tolist() == answer_of_peft.tolist()
    assert mine["input_ids"][0, memory.positions :].tolist() == prompt["input_ids"][0].tolist()


@pytest.mark.parametrize("adapters", [(PREFIX,), (LORA,), (PREFIX, LORA)], ids=["prefix", "lora", "both"])
def test_detaching_leaves_the_model_as_it_was_to_the_bit(
    cube_of: Made, model: Any, tokenizer: Any, adapters: tuple[AdapterSpec, ...]
) -> None:
    before, attributes = logits(model), set(vars(model))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memory = memgrid.attach(model, [cube_of(adapter) for adapter in adapters])
    model.generate(**memory.prompt(tokenizer, QUESTION), **GREEDY)
    memory.detach()
    memory.detach()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert set(vars(model)) == attributes
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(InvalidError, match="detached; attach again"):
        memory.prompt(tokenizer, QUESTION)


def test_prefixes_stand_behind_one_another_with_one_sink(cube_of: Made, model: Any, base: ModelIdentity) -> None:
    first, second, third = (cube_of(PREFIX, seed) for seed in (1, 2, 3))
    frequencies = inverse_frequencies(base.rope["all"])
    kv = [read_prefix(cube, base) for cube in (first, second, third)]  # [p, layers, 2, heads, dim]
    cache = DynamicCache()
    for layer in range(base.geometry.layers):
        keys = [kv[0][:, layer, 0], *(kv[n][1:, layer, 0] for n in (1, 2))]
        values = [kv[0][:, layer, 1], *(kv[n][1:, layer, 1] for n in (1, 2))]
        # The second's token 1 comes to stand at position 6, the third's at position 11.
        keys[1], keys[2] = rerotate(keys[1], 5, frequencies), rerotate(keys[2], 10, frequencies)
        k, v = (torch.cat(parts).transpose(0, 1)[None] for parts in (keys, values))
        cache.update(k, v, layer)
    expected = logits(model, cache)
    memory = memgrid.attach(model, [first, second, third])
    assert memory.positions == 6 + 5 + 5
    assert (logits(model, memory.cache()) - expected).abs().max() <= 1e-4
    swapped = memgrid.attach(model, [second, first, third])
    assert (logits(model, swapped.cache()) - expected).abs().max() > 1e-3


def test_a_moved_prefix_is_what_the_model_computes_there(
    cube_of: Made, model: Any, tmp_path: Path, base: ModelIdentity
) -> None:
    """A prefix taken from a text's own cache, put behind five positions, is that text five positions further on."""
    ids = torch.tensor([[7, 20, 31, 44, 59, 60]])
    with torch.inference_mode():
        at_5 = model.model(ids[:, 1:], position_ids=torch.arange(6, 11)[None], use_cache=True).past_key_values
        at_0 = model.model(ids[:, 1:], position_ids=torch.arange(1, 6)[None], use_cache=True).past_key_values
    frequencies = inverse_frequencies(base.rope["all"])
    for (there, _, *_), (here, _, *_) in zip(at_5, at_0, strict=True):
        assert (rerotate(here, 5, frequencies) - there).abs().max() < 1e-4


def test_loras_add_up_and_go_with_a_prefix(cube_of: Made, model: Any) -> None:
    prefix, one, other = cube_of(PREFIX), cube_of(LORA, 1), cube_of(LORA, 2)
    merged = merge_by_hand(model, one, other)
    with memgrid.attach(model, [one, other]) as memory:
        assert memory.positions == 0
        assert (logits(model, memory.cache()) - logits(merged)).abs().max() <= 1e-4
    with memgrid.attach(model, [prefix]) as memory:
        expected = logits(merged, memory.cache())
    with memgrid.attach(model, [one, prefix, other]) as memory:
        assert (logits(model, memory.cache()) - expected).abs().max() <= 1e-4
    assert (expected - logits(merged)).abs().max() > 0.1


def test_a_lora_goes_with_a_texts_cache(
    cube_of: Made, tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    lora, text = cube_of(LORA), text_cube(tmp_path / "text", model, tokenizer, tiny_model_folder)
    with text.attach(model) as memory:
        expected = logits(merge_by_hand(model, lora), memory.cache())
    with memgrid.attach(model, [text, lora]) as memory:
        assert memory.positions == text.manifest.token_count
        assert (logits(model, memory.cache()) - expected).abs().max() <= 1e-4


def test_mixes_that_do_not_go_are_refused_in_one_line(
    cube_of: Made, tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    prefix, text = cube_of(PREFIX), text_cube(tmp_path / "text", model, tokenizer, tiny_model_folder)
    with pytest.raises(InvalidError, match=r"tests/document, tests/prefix-0: a text's KV cache goes alone or with"):
        memgrid.attach(model, [prefix, text])
    with pytest.raises(InvalidError, match="cubes, each once"):
        memgrid.attach(model, [prefix, prefix])
    with pytest.raises(InvalidError, match="cubes, each once"):
        memgrid.attach(model, [])
    with pytest.raises(InvalidError, match="link: only an activation cube"):
        prefix.attach(model, link="exact")


def test_two_attachments_with_loras_do_not_mix_unnoticed(cube_of: Made, model: Any, tokenizer: Any) -> None:
    prefix, one, other = cube_of(PREFIX), cube_of(LORA, 1), cube_of(LORA, 2)
    before = logits(model)
    first, quiet = one.attach(model), prefix.attach(model)
    with pytest.raises(InvalidError, match="tests/lora-1: at work in this model; detach"):
        other.attach(model)
    with pytest.raises(InvalidError, match="tests/lora-1: at work in this model"):
        quiet.prompt(tokenizer, QUESTION)
    first.detach()
    quiet.prompt(tokenizer, QUESTION)
    other.attach(model)
    memgrid.detach(model)
    memgrid.detach(model)
    assert torch.equal(logits(model), before)


def test_two_models_do_not_know_of_each_other(cube_of: Made, model: Any, tiny_model_folder: Path) -> None:
    twin = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    bare, one = logits(twin), cube_of(LORA, 1)
    with one.attach(model) as mine:
        assert torch.equal(logits(twin), bare)
        with one.attach(twin) as theirs:
            assert torch.equal(logits(twin, theirs.cache()), logits(model, mine.cache()))
    assert torch.equal(logits(twin), bare)


def test_sampling_replays_with_a_seed_and_differs_without(cube_of: Made, model: Any, tokenizer: Any) -> None:
    memory = cube_of(PREFIX).attach(model)

    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        drawn = model.generate(**memory.prompt(tokenizer, QUESTION), max_new_tokens=12, do_sample=True, top_p=0.95)
        return list(drawn[0].tolist())

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.parametrize("adapter", [PREFIX, LORA], ids=["prefix", "lora"])
def test_a_model_in_bfloat16_takes_them_too(tmp_path: Path, tokenizer: Any, adapter: AdapterSpec) -> None:
    folder = make_tiny_model(tmp_path / "half", dtype=torch.bfloat16)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    make_parameter_cube(tmp_path / "cube", adapter, half, identity_of_folder(folder, "half"), KEY)
    cube = MemCube.open(tmp_path / "cube", trusted=True)
    with cube.attach(half) as memory, cube.attach(exact) as reference:
        found, expected = logits(half, memory.cache()), logits(exact, reference.cache())
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() < 0.05 * expected.norm()
        half.generate(**memory.prompt(tokenizer, QUESTION), **GREEDY)


def test_a_conversation_goes_on(cube_of: Made, model: Any, tokenizer: Any) -> None:
    turns = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "At three bar."},
        {"role": "user", "content": "And when does it close?"},
    ]
    memory = cube_of(PREFIX).attach(model)
    ids = memory.prompt(tokenizer, turns)["input_ids"][0, memory.positions :].tolist()
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids) == rendered
    with pytest.raises(InvalidError, match="message 1: expected a role of system, user, assistant"):
        memory.prompt(tokenizer, [{"role": "pump", "content": "x"}])
    with pytest.raises(InvalidError, match="expected some text from the user at the end"):
        memory.prompt(tokenizer, turns[:2])
    with pytest.raises(InvalidError, match="expected some text from the user at the end"):
        memory.prompt(tokenizer, "")


def test_a_text_is_the_system_message_so_there_is_no_other(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    memory = text_cube(tmp_path / "text", model, tokenizer, tiny_model_folder).attach(model)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    with pytest.raises(InvalidError, match="message 1: the cube's text is the system message already"):
        memory.prompt(tokenizer, turns)


def test_only_verified_cubes_for_this_very_model_are_attached(
    cube_of: Made, model: Any, other_model_folder: Path, tokenizer: Any
) -> None:
    cube = cube_of(LORA)
    with pytest.raises(NotVerifiedError, match="call verify"):
        memgrid.attach(model, [cube_of(PREFIX), MemCube.open(cube.folder)])
    other = AutoModelForCausalLM.from_pretrained(other_model_folder, dtype=torch.float32)
    before = logits(other)
    with pytest.raises(DoesNotFitError, match=r"^weights: "):
        cube.attach(other)
    assert torch.equal(logits(other), before)


def test_a_lora_that_does_not_fit_leaves_nothing_behind(
    cube_of: Made, tmp_path: Path, model: Any, base: ModelIdentity
) -> None:
    good, bad = cube_of(LORA, 1), cube_of(LORA, 2)
    bad.manifest = replace(bad.manifest, adapter=replace(LORA, rank=5))
    before = logits(model)
    with pytest.raises(InvalidError, match=r"lora_A\.weight: expected \[5, "):
        memgrid.attach(model, [good, bad])
    assert torch.equal(logits(model), before)
    good.attach(model).detach()


def read_prefix(cube: MemCube, base: ModelIdentity) -> torch.Tensor:
    """[p, layers, 2, kv_heads, head_dim] as float32."""
    stored = load_file(cube.folder / "adapter_model.safetensors")["prompt_embeddings"].float()
    geometry = base.geometry
    return stored.view(-1, geometry.layers, 2, geometry.kv_heads, geometry.head_dim)


def merge_by_hand(model: Any, *cubes: MemCube) -> Any:
    """A copy of the model whose weights have the LoRAs added in."""
    merged = type(model)(model.config).eval()
    merged.load_state_dict(model.state_dict())
    for cube in cubes:
        tensors = load_file(cube.folder / "adapter_model.safetensors")
        for name in tensors:
            if name.endswith("lora_A.weight"):
                module = merged.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                b = tensors[name.replace("lora_A", "lora_B")].float()
                module.weight.data += 2.0 * b @ tensors[name].float()
    return merged


def text_cube(folder: Path, model: Any, tokenizer: Any, model_folder: Path) -> MemCube:
    text = "The manual says that the valve opens at three bar and closes at two. " * 4
    make_cube(folder, model=model, model_folder=model_folder, tokenizer=tokenizer, text=text, key=KEY, wrap=Wrap.CHAT)
    cube = MemCube.open(folder)
    cube.verify([KEY.public_key])
    return cube
