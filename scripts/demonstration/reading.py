"""What a consumer gains: a question answered from a cube, against reading the whole text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from memgrid import MemCube

REPEATS = 3
GREEDY = {"max_new_tokens": 32, "do_sample": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One cube, one question, both ways. Seconds are medians of three, taken in turns."""

    tokens: int
    question_tokens: int
    ttft_prefill_s: float
    ttft_cube_s: float
    kl_to_full_text: float
    """KL divergence, in nats, of the next token after the question: having read the text to having the cube."""
    kl_without_text: float
    """The same for the model that has neither."""
    top1_agrees: bool
    answer: str
    answer_without_text: str


def load(folder: Path) -> tuple[Any, Any]:
    """The model in float32, as the volunteers computed it, and its tokenizer."""
    disable_progress_bar()  # it would draw over our own lines
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), tokenizer


@torch.inference_mode()
def read_both_ways(model: Any, tokenizer: Any, cube: MemCube, question: str) -> Reading:
    memory = cube.attach(model)  # compares the model with the cube's, once; not part of an answer
    prompt = memory.prompt(tokenizer, question)
    ids: torch.Tensor = prompt["input_ids"]
    held = cube.info().tokens
    question_ids = ids[:, held:]

    def from_text() -> torch.Tensor:
        return model(input_ids=ids, logits_to_keep=1).logits[0, -1]

    def from_cube() -> torch.Tensor:
        return model(input_ids=question_ids, past_key_values=memory.cache(), logits_to_keep=1).logits[0, -1]

    ttft_prefill_s, ttft_cube_s, full, attached = _in_turns(from_text, from_cube)
    alone = model(input_ids=question_ids, logits_to_keep=1).logits[0, -1]
    answer = model.generate(**prompt, **GREEDY)
    guess = model.generate(question_ids, attention_mask=torch.ones_like(question_ids), **GREEDY)
    return Reading(
        tokens=held,
        question_tokens=question_ids.shape[1],
        ttft_prefill_s=ttft_prefill_s,
        ttft_cube_s=ttft_cube_s,
        kl_to_full_text=kl(full, attached),
        kl_without_text=kl(full, alone),
        top1_agrees=bool(full.argmax() == attached.argmax()),
        answer=_text(tokenizer, answer[0, ids.shape[1] :]),
        answer_without_text=_text(tokenizer, guess[0, question_ids.shape[1] :]),
    )


def kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """KL(reference ‖ other) of two rows of logits [vocabulary], in nats."""
    p, q = (logits.double().log_softmax(-1) for logits in (reference, other))
    return max(0.0, float((p.exp() * (p - q)).sum()))


def _text(tokenizer: Any, ids: torch.Tensor) -> str:
    """On one line."""
    return " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())


def _in_turns(
    one: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor]
) -> tuple[float, float, torch.Tensor, torch.Tensor]:
    times: tuple[list[float], list[float]] = ([], [])
    results: list[torch.Tensor] = []
    for _ in range(REPEATS):
        results = []
        for seconds, run in zip(times, (one, other), strict=True):
            began_s = time.perf_counter()
            results.append(run())
            seconds.append(time.perf_counter() - began_s)
    return statistics.median(times[0]), statistics.median(times[1]), results[0], results[1]
