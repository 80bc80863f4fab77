"""A model's identity is its bits: packaging changes nothing, any weight or setting changes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from memgrid.cube.geometry import rope_of, sliding_window_of
from memgrid.cube.identity import ModelIdentity, identity_of_folder, is_model_file, model_files, tokenizer_digest
from memgrid.cube.wrap import digest_of_template, digest_of_tokenizer
from memgrid.digest import canonical_json
from memgrid.errors import InvalidError


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_identity_survives_its_own_json(folder: Path) -> None:
    identity = identity_of_folder(folder)
    again = ModelIdentity.from_json(json.loads(canonical_json(identity.to_json())))
    assert again == identity and again.digest == identity.digest and again.name == identity.name


def test_geometry_is_the_model_s(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    geometry = identity_of_folder(folder).geometry
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert geometry.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (geometry.layers, geometry.heads, geometry.kv_heads, geometry.head_dim) == (2, 4, 2, 16)
    inner = sum(parameter.numel() for name, parameter in model.named_parameters() if "embed" not in name)
    assert geometry.matmul_parameters == inner


def test_name_and_packaging_change_nothing(folder: Path) -> None:
    before = identity_of_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[:5]}, folder / "model-00002-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, folder / "model-00001-of-00002.safetensors", {"a": "b"})
    edit_config(folder, _name_or_path="elsewhere", transformers_version="9.9", use_cache=False)
    moved = folder.rename(folder.parent / "another-name")
    after = identity_of_folder(moved, "tiny")
    assert after.digest == before.digest and after == before and after.name != before.name


def test_tied_head_written_out_changes_nothing(folder: Path) -> None:
    before = identity_of_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, folder / "model.safetensors")
    assert identity_of_folder(folder).digest == before.digest


def test_head_of_its_own_counts(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    before = identity_of_folder(folder)
    save_file(tensors | {"lm_head.weight": head + np.float32(1)}, folder / "model.safetensors")
    assert identity_of_folder(folder).weights != before.weights


def change_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-6
    save_file(tensors, folder / "model.safetensors")


def rename_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weights"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")


def change_dtype(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: values.astype(np.float16) for name, values in tensors.items()}, folder / "model.safetensors")


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(value))


def change_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    "change",
    [
        change_weight,
        rename_tensor,
        change_dtype,
        change_tokenizer,
        change_template,
        lambda folder: edit_config(folder, rms_norm_eps=1e-5),
        lambda folder: edit_config(folder, hidden_act="gelu"),
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        lambda folder: edit_config(folder, sliding_window=128),
    ],
)
def test_every_change_that_matters_changes_the_identity(folder: Path, change: Any) -> None:
    before = identity_of_folder(folder).digest
    change(folder)
    assert identity_of_folder(folder).digest != before


def test_loaded_tokenizer_has_the_digest_of_its_file(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer("a call with its own settings", truncation=True, max_length=4, padding="max_length")
    identity = identity_of_folder(folder)
    assert digest_of_tokenizer(tokenizer) == identity.tokenizer
    assert digest_of_template(tokenizer) == identity.chat_template


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
@settings(max_examples=50)
def test_tokenizer_digest_does_not_see_the_order_of_keys(content: dict[str, Any]) -> None:
    backwards = dict(reversed(list(content.items())))
    assert tokenizer_digest(content) == tokenizer_digest(backwards)
    assert tokenizer_digest(content | {"model": 1}) != tokenizer_digest(content | {"model": 2})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .*safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickle"), "header of|truncated"),
        (lambda folder: edit_config(folder, num_hidden_layers="two"), "num_hidden_layers: expected a whole number"),
        (lambda folder: edit_config(folder, num_hidden_layers=True), "num_hidden_layers"),
        (lambda folder: edit_config(folder, hidden_size=None), "hidden_size"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map":{"a":"../x.bin"}}'),
            "plain names",
        ),
        (
            lambda folder: shutil.copy(folder / "model.safetensors", folder / "copy.safetensors"),
            "occurs in two files",
        ),
    ],
)
def test_folder_that_is_no_model_is_refused_with_one_clear_line(folder: Path, spoil: Any, message: str) -> None:
    spoil(folder)
    with pytest.raises(InvalidError, match=message) as refused:
        identity_of_folder(folder)
    assert "\n" not in str(refused.value)


def test_only_data_travels(folder: Path) -> None:
    for name in ("modeling_tiny.py", "pytorch_model.bin", "training_args.bin", "notes.txt"):
        (folder / name).write_bytes(b"print('hello')")
    names = {path.name for path in model_files(folder)}
    assert names == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert all(is_model_file(name) for name in names)
    assert not any(is_model_file(name) for name in ("a.py", "model.bin", "x/config.json", ".safetensors", "a.pt"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"rope_theta": 1e4}, {"all": {"type": "default", "theta": 1e4, "rotary_dim": 64}}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"all": {"type": "linear", "theta": 1e4, "rotary_dim": 64, "factor": 2.0}},
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            {"all": {"type": "default", "theta": 1e4, "rotary_dim": 32}},
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            {
                "full_attention": {"type": "linear", "theta": 1e6, "rotary_dim": 64, "factor": 8.0},
                "sliding_attention": {"type": "default", "theta": 1e4, "rotary_dim": 64},
            },
        ),
    ],
)
def test_both_spellings_of_rotary_embedding_mean_the_same(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert rope_of(config, 64) == expected


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 512}, 512),
        ({"sliding_window": 512, "use_sliding_window": False}, None),
        ({"sliding_window": 512, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]}, 512),
    ],
)
def test_sliding_window_is_the_one_in_use(config: dict[str, Any], window: int | None) -> None:
    assert sliding_window_of(config) == window


@pytest.mark.parametrize("value", [None, 1, "x", []])
@pytest.mark.parametrize("field", ["weights", "tokenizer", "geometry", "rope", "stored_dtype", "config", "name"])
def test_identity_of_another_form_is_refused(field: str, value: Any) -> None:
    assert ModelIdentity.from_json(GOOD).name == "tiny"
    if field in ("stored_dtype", "name") and value == "x":
        return  # any text will do there
    with pytest.raises(InvalidError, match=r"^model identity: "):
        ModelIdentity.from_json(GOOD | {field: value})


GOOD: dict[str, Any] = {
    "name": "tiny",
    "architecture": "LlamaForCausalLM",
    "weights": "sha256:" + "a" * 64,
    "tokenizer": "sha256:" + "b" * 64,
    "chat_template": None,
    "stored_dtype": "F32",
    "dtype_exceptions": {},
    "geometry": {
        "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 2, "hidden": 2, "vocab": 2, "parameters": 9,
        "tied_embeddings": True,
    },
    "rope": {},
    "sliding_window": None,
    "config": {},
}  # fmt: skip
