"""A cube attached to its model is as if the model had read the text; to another model it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
)

from memgrid.cube.cube import MemCube
from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.errors import DoesNotFitError, InvalidError, NotVerifiedError
from memgrid.signing import SigningKey
from memgrid.units import StoreDtype
from tests.cubes import make_cube
from tests.models import make_tiny_model, make_tokenizer

KEY = SigningKey.generate()
TEXT = "The manual says that the valve opens at three bar and closes at two. " * 12
QUESTION = "When does the valve open?"


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def cube_of(folder: Path, model: Any, tokenizer: Any, model_folder: Path, **changes: Any) -> MemCube:
    make_cube(folder, model=model, model_folder=model_folder, tokenizer=tokenizer, text=TEXT, key=KEY, **changes)
    cube = MemCube.open(folder)
    cube.verify([KEY.public_key])
    return cube


def logits(model: Any, ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, past_key_values=cache).logits[0]


@pytest.mark.parametrize("wrap", list(Wrap))
def test_attached_cube_answers_like_the_model_that_read_the_text(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path, wrap: Wrap
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder, wrap=wrap)
    memory = cube.attach(model)
    ids = memory.prompt(tokenizer, QUESTION)["input_ids"]
    own = cube.manifest.token_count
    read = logits(model, ids)[own:]
    attached = logits(model, ids[:, own:], memory.cache())
    assert len(cube.manifest.chunks) > 3
    assert (read - attached).abs().max() < 1e-4
    assert read.abs().max() > 1  # of logits that are not all the same


def test_wrapped_document_is_the_beginning_of_the_rendered_conversation(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    turns = [{"role": "system", "content": TEXT}, {"role": "user", "content": QUESTION}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    memory = cube.attach(model)
    assert memory.prompt(tokenizer, QUESTION)["input_ids"][0].tolist() == tokenizer(rendered)["input_ids"]


def test_generate_continues_from_a_cube_and_leaves_it_as_it_was(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    memory = cube.attach(model)
    prompt = memory.prompt(tokenizer, QUESTION)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    read = model.generate(input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], **settings)
    first = model.generate(**prompt, **settings)
    second = model.generate(**memory.prompt(tokenizer, QUESTION), **settings)
    assert read.tolist() == first.tolist() == second.tolist()


@pytest.mark.parametrize("store_dtype", list(StoreDtype))
def test_rounded_storage_changes_logits_by_its_rounding_only(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path, store_dtype: StoreDtype
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder, store_dtype=store_dtype)
    memory = cube.attach(model)
    ids = memory.prompt(tokenizer, QUESTION)["input_ids"]
    read = logits(model, ids)[cube.manifest.token_count :]
    attached = logits(model, ids[:, cube.manifest.token_count :], memory.cache())
    worst = (read - attached).norm() / read.norm()
    assert worst < {StoreDtype.FLOAT32: 1e-5, StoreDtype.FLOAT16: 5e-3, StoreDtype.BFLOAT16: 3e-2}[store_dtype]


def test_independent_chunks_are_moved_to_where_a_prefill_at_those_positions_puts_them(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder, layout=LayoutKind.INDEPENDENT, sink_tokens=2)
    memory, sink = cube.attach(model), 2
    cache = memory.cache()
    ids = memory.prompt(tokenizer, QUESTION)["input_ids"][0, : memory.positions].tolist()
    assert cache.get_seq_length() == cube.manifest.token_count == len(ids)
    start = 32
    for chunk in cube.manifest.chunks[1:]:
        own = chunk.token_count - sink
        # The sink and the chunk's tokens alone, but with the chunk's positions as in the document. The sink was at 0
        # when the chunk was computed, so it has to be shifted along to keep every distance.
        piece = torch.tensor([ids[:sink] + ids[start : start + own]])
        positions = torch.arange(start - sink, start + own).unsqueeze(0)
        with torch.inference_mode():
            expected = model.model(input_ids=piece, position_ids=positions, use_cache=True).past_key_values
        for (k, v, *_), (want_k, want_v, *_) in zip(cache, expected, strict=True):
            assert (k[0, :, start : start + own] - want_k[0, :, sink:]).abs().max() < 1e-4
            assert (v[0, :, start : start + own] - want_v[0, :, sink:]).abs().max() < 1e-4
        start += own
    assert start == len(ids)


def test_link_policy_that_the_layout_lacks_is_refused(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    assert cube.attach(model, link="exact").positions == cube.manifest.token_count
    with pytest.raises(InvalidError, match=r"link: .* takes exact"):
        cube.attach(model, link="rerotate")


def test_unverified_cube_is_not_attached(tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path) -> None:
    cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    with pytest.raises(NotVerifiedError, match="verify"):
        MemCube.open(tmp_path).attach(model)
    assert MemCube.open(tmp_path, trusted=True).attach(model).positions > 0


def test_model_with_other_weights_is_refused(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    other = AutoModelForCausalLM.from_pretrained(other_model_folder, dtype=torch.float32)
    with pytest.raises(DoesNotFitError, match=r"^weights: "):
        cube.attach(other)


def test_one_changed_weight_is_noticed_even_after_a_successful_attach(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    mine = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    cube.attach(mine)
    with torch.no_grad():
        mine.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    with pytest.raises(DoesNotFitError, match=r"^weights: "):
        cube.attach(mine)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("config.rms_norm_eps", {"rms_norm_eps": 1e-3}),
        ("rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        ("config.hidden_act", {"hidden_act": "gelu"}),
    ],
)
def test_model_with_another_configuration_is_refused_by_the_name_of_the_field(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path, field: str, change: dict[str, Any]
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    changed = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32, **change)
    with pytest.raises(DoesNotFitError, match=f"^{field}: "):
        cube.attach(changed)


def test_model_of_another_size_is_refused_by_the_name_of_the_size(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path / "cube", model, tokenizer, tiny_model_folder)
    deeper = AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path / "deeper", layers=3))
    with pytest.raises(DoesNotFitError, match=r"^layers: .* 2, this model has 3"):
        cube.attach(deeper)


def local_layers_model(folder: Path, kind: str) -> Any:
    """A tiny model with layers that see only the last 16 tokens; Gemma's have a rotary embedding of their own."""
    tokenizer = make_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 16,
    }
    torch.manual_seed(3)
    if kind == "mistral":
        model: Any = MistralForCausalLM(MistralConfig(**sizes))
    else:
        layer_types = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, layer_types=layer_types))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_layers_with_a_window_keep_what_lies_outside_it(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    model = local_layers_model(tmp_path / "model", kind)
    cube = cube_of(tmp_path / "cube", model, tokenizer, tmp_path / "model")
    memory, own = cube.attach(model), cube.manifest.token_count
    ids = memory.prompt(tokenizer, QUESTION)["input_ids"]
    assert own > 5 * 16
    assert (logits(model, ids)[own:] - logits(model, ids[:, own:], memory.cache())).abs().max() < 1e-4
    independent = cube_of(tmp_path / "other", model, tokenizer, tmp_path / "model", layout=LayoutKind.INDEPENDENT)
    with pytest.raises(DoesNotFitError, match=r"^re-rotation: "):
        independent.attach(model)


def test_rounded_rotary_frequencies_are_refused(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    rounded = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).to(torch.bfloat16)
    with pytest.raises(DoesNotFitError, match=r"^rope: .*dtype="):
        cube.attach(rounded)


def test_another_tokenizer_or_template_is_refused(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_model_folder: Path
) -> None:
    cube = cube_of(tmp_path, model, tokenizer, tiny_model_folder)
    memory = cube.attach(model)
    other = AutoTokenizer.from_pretrained(tiny_model_folder)
    other.chat_template += " "
    with pytest.raises(DoesNotFitError, match=r"^chat_template: "):
        memory.prompt(other, QUESTION)
    other = AutoTokenizer.from_pretrained(tiny_model_folder)
    other.add_tokens(["valve"])
    with pytest.raises(DoesNotFitError, match=r"^tokenizer: "):
        memory.prompt(other, QUESTION)
