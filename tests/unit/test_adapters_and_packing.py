"""Adapters, packed rows and the loss, against PEFT, against conversations one by one, and against autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import PeftModel

from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.distill.adapters import applied, hidden_states, load_adapter, lora_hooks
from memgrid.distill.batches import Batches, Conversation, Packed, pack
from memgrid.distill.loss import Targets, distillation_loss
from memgrid.distill.model import load_model
from memgrid.errors import InvalidError
from memgrid.specs import AdapterSpec
from memgrid.units import StoreDtype
from tests.adapters import write_adapter
from tests.models import make_tiny_model
from tests.training import FRAME, FROZEN_A, LORA, PREFIX, conversations

CPU = torch.device("cpu")
ADAPTERS = pytest.mark.parametrize("adapter", [PREFIX, LORA, FROZEN_A], ids=["prefix", "lora", "frozen-a"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def identity(folder: Path) -> ModelIdentity:
    return identity_of_folder(folder)


@pytest.fixture
def model(folder: Path) -> Any:
    return load_model(folder, torch.float32, CPU)


def whole_text(*ids: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, positions and segments of one row that is one text."""
    row = torch.tensor([ids])
    return row, torch.arange(len(ids))[None], torch.ones_like(row)


@ADAPTERS
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_logits_are_those_of_peft(
    folder: Path, identity: ModelIdentity, model: Any, adapter: AdapterSpec, tmp_path: Path
) -> None:
    where = write_adapter(tmp_path / "adapter", adapter, model, identity, seed=3, store_dtype=StoreDtype.FLOAT32)
    loaded = load_adapter(where / "adapter_model.safetensors", adapter, model)
    ids, positions, segments = whole_text(3, 50, 70, 9, 200, 31)
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        with applied(model, adapter, loaded.tensors) as past:
            ours = model.lm_head(hidden_states(model, ids, positions, segments, past))
        after = model(input_ids=ids).logits
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, where)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - bare).abs().max() > 0.1
    assert torch.equal(after, bare)


@ADAPTERS
def test_packed_rows_give_the_gradient_of_conversations_one_by_one(
    identity: ModelIdentity, model: Any, adapter: AdapterSpec, tmp_path: Path
) -> None:
    where = write_adapter(tmp_path / "adapter", adapter, model, identity, seed=3, store_dtype=StoreDtype.FLOAT32)
    tensors = load_adapter(where / "adapter_model.safetensors", adapter, model).tensors
    talk = conversations(1)
    rows = [(0, 1, 2), (3, 4)]
    together = gradient_of(model, adapter, tensors, pack(rows, talk, FRAME, row_tokens=64, device=CPU))
    alone = [gradient_of(model, adapter, tensors, plainly(talk[index])) for row in rows for index in row]
    for name, value in together.items():
        summed = torch.stack([each[name] for each in alone]).sum(0)
        assert value.abs().max() > 1e-3
        torch.testing.assert_close(value, summed, rtol=1e-4, atol=1e-5)


def gradient_of(model: Any, adapter: AdapterSpec, tensors: dict[str, torch.Tensor], packed: Packed) -> dict[str, Any]:
    leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    with torch.enable_grad():
        with applied(model, adapter, leaves) as past:
            hidden = hidden_states(model, packed.ids, packed.positions, packed.segments, past)
        picked = hidden[packed.row_of_answers(), packed.columns]
        _, gradient = distillation_loss(picked.detach(), model.lm_head, packed.targets)
        picked.backward(gradient)
    return {name: value.grad for name, value in leaves.items()}


def plainly(talk: Conversation) -> Packed:
    """One conversation as one causal text, with nothing shared and nothing packed."""
    asked = [*FRAME.student_before, *talk.question.tolist(), *FRAME.student_after]
    ids, positions, segments = whole_text(*asked, *talk.answer.tolist())
    count = len(talk.answer)
    return Packed(
        ids=ids,
        positions=positions,
        segments=segments,
        columns=torch.arange(len(asked) - 1, len(asked) - 1 + count),
        bounds=(0, count),
        answers=torch.from_numpy(talk.answer.astype(np.int64)),
        conversation=torch.zeros(count, dtype=torch.int64),
        targets=Targets(
            top_ids=torch.from_numpy(talk.top_ids.astype(np.int64)),
            top_probabilities=torch.from_numpy(np.exp(talk.top_logprobs)),
            tail=torch.from_numpy(talk.tail),
        ),
    )


def test_loss_and_gradient_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(40, 8, requires_grad=True)
    top_ids = torch.stack([torch.randperm(50)[:5] for _ in range(40)])
    p = torch.rand(40, 5)
    p = 0.9 * p / p.sum(1, keepdim=True)
    tail = 1 - p.sum(1)
    log_q = torch.log_softmax(hidden @ head.weight.T, dim=1)
    q_top = log_q.gather(1, top_ids)
    expected = -(p * q_top).sum(1) - tail * torch.log(1 - q_top.exp().sum(1))
    expected.sum().backward()
    targets = Targets(top_ids=top_ids, top_probabilities=p, tail=tail)
    losses, gradient = distillation_loss(hidden.detach(), head.requires_grad_(False), targets)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-4, atol=1e-6)


def test_pieces_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(40, 8)
    targets = Targets(
        top_ids=torch.arange(40)[:, None] % 50,
        top_probabilities=torch.full((40, 1), 0.7),
        tail=torch.full((40,), 0.3),
    )
    whole = distillation_loss(hidden, head, targets)
    monkeypatch.setattr("memgrid.distill.loss.LOGITS_BYTES_MAX", 4 * 50 * 7)
    pieces = distillation_loss(hidden, head, targets)
    torch.testing.assert_close(pieces, whole)


def test_certain_teacher_and_certain_student_stay_finite() -> None:
    head = torch.nn.Linear(4, 6, bias=False).requires_grad_(False)
    head.weight.copy_(torch.eye(6, 4) * 200)
    hidden = torch.eye(4)
    targets = Targets(
        top_ids=torch.tensor([[0], [1], [2], [0]]),
        top_probabilities=torch.tensor([[1.0], [0.5], [1e-4], [1.0]]),
        tail=torch.tensor([0.0, 0.5, 0.9999, 0.0]),
    )
    losses, gradient = distillation_loss(hidden, head, targets)
    assert torch.isfinite(losses).all() and torch.isfinite(gradient).all()
    assert losses[0] < 1e-6


def batches(talk: list[Conversation], **changes: int) -> Batches:
    options = {"seed": 1, "stream": 0, "streams": 1, "batch_rows": 4, "row_tokens": 64, **changes}
    return Batches(talk, FRAME, **options)


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    talk = conversations(1, 2)
    forwards, backwards = batches(talk), batches(talk)
    steps = [forwards.step(step) for step in range(10)]
    assert [backwards.step(step) for step in reversed(range(10))] == steps[::-1]
    assert batches(talk, seed=2).step(0) != steps[0]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), row_tokens=st.integers(24, 120), streams=st.integers(1, 4))
@example(rows=1, row_tokens=61, streams=2)
@example(rows=4, row_tokens=61, streams=4)
def test_every_stream_sees_its_share_once_a_pass(rows: int, row_tokens: int, streams: int) -> None:
    talk = conversations(1, 2)
    room = row_tokens - len(FRAME.student_before)
    share = sum(len(each.question) + 2 <= room for each in talk) // streams
    firsts: list[list[int]] = []
    for stream in range(streams):
        made = batches(talk, batch_rows=rows, row_tokens=row_tokens, stream=stream, streams=streams)
        drawn: list[int] = []
        first: list[int] = []
        for step in range(12):
            laid = made.step(step)
            assert len(laid) == rows and all(laid)
            for row in laid:
                lengths = [len(talk[i].question) + 2 + len(talk[i].answer) - 1 for i in row]
                assert sum(min(room, length) for length in lengths) <= room
                drawn.extend(row)
            # A step looks at no more than it takes and eight that it passes over: these are all of the first pass.
            if len(drawn) + 8 <= share:
                first = list(drawn)
        firsts.append(first)
    assert [len(set(first)) for first in firsts] == [len(first) for first in firsts], "nothing comes twice in a pass"
    assert sum(len(first) for first in firsts) == len(set().union(*firsts)), "or in two streams"


def test_an_answer_too_long_for_a_row_loses_its_end() -> None:
    talk = conversations(1)
    longest = max(range(len(talk)), key=lambda index: len(talk[index].question) + len(talk[index].answer))
    needed = len(FRAME.student_before) + len(talk[longest].question) + 2 + len(talk[longest].answer) - 1
    packed = pack([(longest,)], talk, FRAME, row_tokens=needed - 3, device=CPU)
    assert packed.answer_tokens == len(talk[longest].answer) - 3
    assert packed.answers.tolist() == talk[longest].answer[:-3].tolist()


def test_rows_too_short_for_anything_are_refused() -> None:
    with pytest.raises(InvalidError, match="0 conversations fit into rows of 8 tokens"):
        batches(conversations(1), row_tokens=8)


def test_half_a_lora_is_refused(model: Any) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    with (
        pytest.raises(InvalidError, match="expected lora_A and lora_B"),
        lora_hooks(model, {f"{name}.lora_A.weight": torch.zeros(4, 64)}, alpha=8, rank=4),
    ):
        pass


def test_adapter_of_another_shape_is_refused(model: Any, identity: ModelIdentity, tmp_path: Path) -> None:
    where = write_adapter(tmp_path / "adapter", PREFIX, model, identity)
    longer = AdapterSpec(kind=PREFIX.kind, virtual_tokens=7, frozen_tokens=1)
    with pytest.raises(InvalidError, match=r"prompt_embeddings: expected \[7, 128\], found \[6, 128\]"):
        load_adapter(where / "adapter_model.safetensors", longer, model)
