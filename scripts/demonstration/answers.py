"""One question to one model, three times: without a text, with the text before it, with a distilled cube."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from memgrid import MemCube
from memgrid.cube.manifest import Wrap
from memgrid.cube.wrap import document_ids, question_ids

GREEDY = {"max_new_tokens": 48, "do_sample": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the model said, and what had to be in memory for it."""

    without_text: str
    with_text: str
    with_cube: str
    cube_bytes: int
    text_kv_bytes: int
    """The key-value cache of the text in the cube's storage format."""


@torch.inference_mode()
def answer_three_ways(model: Any, tokenizer: Any, cube: MemCube, text: str, question: str) -> Answers:
    manifest = cube.manifest
    chat = [{"role": "user", "content": question}]
    plain = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    read = [*document_ids(tokenizer, text, Wrap.CHAT), *question_ids(tokenizer, question, Wrap.CHAT)]
    with cube.attach(model) as memory:
        with_cube = _answer(model, tokenizer, memory.prompt(tokenizer, question))
    ids = torch.tensor([read])
    return Answers(
        without_text=_answer(model, tokenizer, plain),
        with_text=_answer(model, tokenizer, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
        with_cube=with_cube,
        cube_bytes=manifest.payload_bytes,
        text_kv_bytes=manifest.base.geometry.kv_bytes(manifest.token_count, manifest.numerics.store_dtype),
    )


def _answer(model: Any, tokenizer: Any, prompt: Any) -> str:
    """What follows the prompt, on one line."""
    answer = model.generate(**prompt, **GREEDY)[0, prompt["input_ids"].shape[1] :]
    return " ".join(tokenizer.decode(answer, skip_special_tokens=True).split())
