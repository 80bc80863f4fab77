"""What PEFT itself makes of the files that a training state becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.peft import adapter_files, safetensors_bytes
from memgrid.errors import InvalidError
from memgrid.kinds.tensorfile import TensorFile
from memgrid.specs import AdapterSpec
from memgrid.units import StoreDtype
from tests.adapters import LORA, PREFIX, write_adapter, write_state

# PEFT asks transformers something that it now calls by another name; our files have no part in it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SEEDED = replace(LORA, frozen_a_seed=11)


@pytest.fixture
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder, "tiny")


@pytest.mark.parametrize("adapter", [PREFIX, LORA, SEEDED], ids=["prefix", "lora", "frozen_a"])
@pytest.mark.parametrize("store_dtype", list(StoreDtype))
def test_peft_loads_the_folder_as_it_is(
    tmp_path: Path, model: Any, base: ModelIdentity, adapter: AdapterSpec, store_dtype: StoreDtype
) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        bare = model(ids).logits
    folder = write_adapter(tmp_path / "cube", adapter, model, base, store_dtype=store_dtype)
    loaded = PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.inference_mode():
        changed = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        again = loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert (bare - changed).abs().max() > 0.1
    assert again.shape[1] > ids.shape[1]
    config = loaded.peft_config["default"]
    assert (config.task_type, config.base_model_name_or_path) == ("CAUSAL_LM", "tiny")


def test_peft_holds_the_very_numbers_of_the_state(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    folder = write_adapter(tmp_path / "cube", PREFIX, model, base, store_dtype=StoreDtype.FLOAT32)
    state = load_file(tmp_path / "cube.state.safetensors")
    loaded = PeftModel.from_pretrained(model, str(folder))
    encoder = loaded.prompt_encoder["default"]
    assert torch.equal(encoder.weight, state["prompt_embeddings"])
    assert encoder.num_frozen_tokens == 1
    assert not any(name.startswith("adam") for name in load_file(folder / "adapter_model.safetensors"))


def test_the_same_state_gives_the_same_bytes(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    state = write_state(tmp_path / "state.safetensors", SEEDED, model)
    first = adapter_files(state, SEEDED, base, StoreDtype.BFLOAT16)
    assert first == adapter_files(state, SEEDED, base, StoreDtype.BFLOAT16)
    other = adapter_files(state, replace(SEEDED, frozen_a_seed=12), base, StoreDtype.BFLOAT16)
    assert first[0] == other[0] and first[1] != other[1]


def test_bfloat16_rounds_as_torch_does(tmp_path: Path) -> None:
    numbers = np.random.default_rng(3).standard_normal((64, 33)).astype(np.float32)
    numbers[0, :3] = [1.00390625, 1.01171875, -1.00390625]  # halfway between two neighbours
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"x": numbers, "a": numbers[:1]}, StoreDtype.BFLOAT16))
    read = load_file(path)
    assert torch.equal(read["x"], torch.from_numpy(numbers).to(torch.bfloat16))
    assert torch.equal(read["a"], torch.from_numpy(numbers[:1]).to(torch.bfloat16))


def test_a_state_of_another_shape_is_refused(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    state = write_state(tmp_path / "prefix.safetensors", PREFIX, model)
    with pytest.raises(
        InvalidError, match=r"state: prompt_embeddings: expected F32 of 9 x 128, found F32 of \[6, 128"
    ):
        adapter_files(state, replace(PREFIX, virtual_tokens=9), base, StoreDtype.BFLOAT16)
    with pytest.raises(InvalidError, match=r"state: expected LoRA of down_proj, o_proj, q_proj, v_proj, found $"):
        adapter_files(state, LORA, base, StoreDtype.BFLOAT16)
    lora = write_state(tmp_path / "lora.safetensors", SEEDED, model)
    with pytest.raises(InvalidError, match=r"state: base_model\.model\..*lora_A\.weight is missing"):
        adapter_files(lora, LORA, base, StoreDtype.BFLOAT16)


@pytest.mark.parametrize(
    ("number", "dtype", "message"),
    [
        (np.nan, StoreDtype.BFLOAT16, "x: contains NaN or infinity"),
        (1e6, StoreDtype.FLOAT16, "x: does not fit into float16"),
        (3.4e38, StoreDtype.BFLOAT16, "x: does not fit into bfloat16"),
    ],
)
def test_numbers_that_cannot_be_stored_are_refused(number: float, dtype: StoreDtype, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        safetensors_bytes({"x": np.asarray([[number]], dtype=np.float32)}, dtype)


def test_a_seeded_a_has_every_modules_own_size(tmp_path: Path, model: Any, base: ModelIdentity) -> None:
    state = write_state(tmp_path / "state.safetensors", SEEDED, model)
    file = TensorFile.of_bytes(adapter_files(state, SEEDED, base, StoreDtype.FLOAT32)[1])
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in SEEDED.targets:
            a = file.float32(f"base_model.model.{name}.lora_A.weight")
            assert a.shape == (4, module.weight.shape[1])
            bound = module.weight.shape[1] ** -0.5
            assert -bound <= a.min() < -0.9 * bound and 0.9 * bound < a.max() <= bound
            assert abs(a.mean()) < 0.1 * bound
