"""Trained prefixes on the real small model: the layout that PEFT reads, exactly what the text left, and joining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import memgrid
from memgrid.cube.cube import MemCube
from memgrid.cube.identity import identity_of_folder
from memgrid.cube.manifest import Wrap
from memgrid.cube.wrap import document_ids, question_ids
from memgrid.signing import SigningKey
from memgrid.specs import AdapterKind, AdapterSpec
from memgrid.units import StoreDtype
from memgrid_coordinator.heavy.assemble_adapter import assemble_adapter
from tests.adapters import adapter_order, write_folder
from tests.cubes import prefill
from tests.integration.test_attach_real_model import DOCUMENT, FOLDER, QUESTION, model_folder

__all__ = ["model_folder"]  # the fixture, shared
pytestmark = [
    pytest.mark.model,
    # PEFT asks transformers something that it now calls by another name; our files have no part in it.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
KEY = SigningKey.generate()


def prefix_cube(folder: Path, model: Any, ids: list[int], name: str) -> MemCube:
    """A cube whose prefix is what reading these tokens leaves in the cache, to the bit."""
    layers = [half[0].transpose(0, 1) for k, v, *_ in prefill(model, ids) for half in (k, v)]  # [p, heads, dim] each
    state = folder.parent / f"{folder.name}.safetensors"
    state.parent.mkdir(parents=True, exist_ok=True)
    embeddings = torch.stack(layers, dim=1).reshape(len(ids), -1).contiguous()
    save_file({"prompt_embeddings": embeddings}, state)
    adapter = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=len(ids), frozen_tokens=1)
    base = identity_of_folder(FOLDER, "smollm2-135m-instruct")
    order, tensors = adapter_order(state, adapter, base, name=name, store_dtype=StoreDtype.FLOAT32)
    write_folder(folder, assemble_adapter(replace(order, token_count=len(ids)), KEY), tensors)
    cube = MemCube.open(folder)
    cube.verify([KEY.public_key])
    return cube


def test_a_prefix_made_of_a_texts_cache_is_the_text_to_us_and_to_peft(tmp_path: Path, model_folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = document_ids(tokenizer, DOCUMENT, Wrap.CHAT)
    asked = torch.tensor([question_ids(tokenizer, QUESTION, Wrap.CHAT)])
    cube = prefix_cube(tmp_path / "text", model, ids, "tests/text")
    with torch.inference_mode():
        bare = model(asked).logits[0]
        read = model(torch.cat((torch.tensor([ids]), asked), dim=1)).logits[0, len(ids) :]
        with cube.attach(model) as memory:
            attached = model(asked, past_key_values=memory.cache()).logits[0]
        assert torch.equal(model(asked).logits[0], bare)
        assert (attached - read).abs().max() < 1e-3 < (bare - read).abs().max()

        # Two halves apart, the second with the first token of the first before it, as every prefix has the sink.
        half = len(ids) // 2
        first = prefix_cube(tmp_path / "first", model, ids[:half], "tests/first")
        second = prefix_cube(tmp_path / "second", model, [ids[0], *ids[half:]], "tests/second")
        with memgrid.attach(model, [first, second]) as memory:
            assert memory.positions == len(ids)
            joined = model(asked, past_key_values=memory.cache()).logits[0]
        assert divergence(read, joined) < divergence(read, bare) / 2

        peft = PeftModel.from_pretrained(model, cube.path).eval()
        theirs = peft(input_ids=asked, attention_mask=torch.ones_like(asked)).logits[0]
    assert (attached - theirs).abs().max() <= 1e-4


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """The mean KL over positions of two rows of logits [n, vocabulary], in nats."""
    p, q = (logits.double().log_softmax(-1) for logits in (reference, other))
    return float((p.exp() * (p - q)).sum(-1).mean())
