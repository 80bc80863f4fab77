"""The tiny model that other tests stand on."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models import make_tiny_model


def test_same_seed_makes_the_same_weights(tmp_path: Path, tiny_model_folder: Path) -> None:
    again = make_tiny_model(tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / name).read_bytes() == (tiny_model_folder / name).read_bytes()


def test_the_tokenizer_writes_any_text_and_knows_the_chat_template(tiny_model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    text = "Grüße, 世界 \x00 – <b>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    wrapped = tokenizer.apply_chat_template([{"role": "system", "content": "hi"}], tokenize=False)
    assert wrapped == "<|im_start|>system\nhi<|im_end|>\n"


def test_the_model_loads_and_its_output_depends_on_every_token(tiny_model_folder: Path) -> None:
    import torch

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    ids = torch.arange(3, 35)[None]
    changed = ids.clone()
    changed[0, 0] = 100
    with torch.inference_mode():
        distance = (model(ids).logits[0, -1] - model(changed).logits[0, -1]).abs().max()
    assert distance > 1e-3
