"""Many rows behind one context see what each would see alone, in whatever pieces attention is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memgrid.distill import shared_context
from memgrid.distill.model import CausalLM, load_model
from memgrid.distill.shared_context import NO_CONTEXT, Rows, read_context

CONTEXT = list(range(10, 70))
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]


@pytest.fixture
def model(tiny_model_folder: Path) -> CausalLM:
    return load_model(tiny_model_folder, torch.float32, torch.device("cpu"))


def alone(model: CausalLM, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden: torch.Tensor = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-4)


@pytest.mark.parametrize("context", [CONTEXT, []])
def test_rows_of_different_lengths_are_each_as_if_alone(model: CausalLM, context: list[int]) -> None:
    rows = Rows(model, read_context(model, context) if context else NO_CONTEXT, 3, 20)
    first = rows.feed(PROMPTS)
    second = rows.feed([[20], [], [21, 22]])
    third = rows.feed([[23], [24], []])
    for row, prompt in enumerate(PROMPTS):
        assert close(first[row, : len(prompt)], alone(model, context + prompt)[len(context) :])
    assert close(second[0, 0], alone(model, [*context, *PROMPTS[0], 20])[-1])
    assert close(second[2, :2], alone(model, [*context, *PROMPTS[2], 21, 22])[-2:])
    assert close(third[1, 0], alone(model, [*context, *PROMPTS[1], 24])[-1])
    assert rows.lengths.tolist() == [5, 2, 8]


def test_rows_that_are_kept_go_on_in_their_new_order(model: CausalLM) -> None:
    rows = Rows(model, read_context(model, CONTEXT), 3, 20)
    rows.feed(PROMPTS)
    rows.keep([2, 0])
    hidden = rows.feed([[30], [31, 32]])
    assert close(hidden[0, 0], alone(model, [*CONTEXT, *PROMPTS[2], 30])[-1])
    assert close(hidden[1, :2], alone(model, [*CONTEXT, *PROMPTS[0], 31, 32])[-2:])


@pytest.mark.parametrize("scores", [1, 300, 2000])
def test_attention_in_pieces_is_attention(model: CausalLM, monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    whole = Rows(model, read_context(model, CONTEXT), 3, 20).feed(PROMPTS)
    monkeypatch.setattr(shared_context, "_SCORES_MAX", scores)
    pieces = Rows(model, read_context(model, CONTEXT), 3, 20).feed(PROMPTS)
    assert close(pieces, whole)


def test_the_model_attends_as_before_afterwards(model: CausalLM) -> None:
    before = model.config._attn_implementation
    Rows(model, NO_CONTEXT, 1, 4).feed([[1, 2]])
    assert model.config._attn_implementation == before == "sdpa"


def test_the_context_is_there_once(model: CausalLM) -> None:
    context = read_context(model, CONTEXT)
    rows = Rows(model, context, 3, 20)
    rows.feed(PROMPTS)
    held = [tensor for pair in rows._own.values() for tensor in pair]
    assert all(tensor.shape == (3, 2, 20, 16) for tensor in held)
    assert context.tokens == len(CONTEXT) and context.keys[0].shape == (2, 60, 16)
