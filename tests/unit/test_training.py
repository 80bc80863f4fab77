"""Training: the same bits however it is cut up, and the numbers that PEFT and plain batches give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memgrid.distill.adam import BETA_1, BETA_2, EPSILON, learning_rate
from memgrid.distill.model import load_model
from memgrid.distill.state import TrainState, read_state, state_bytes, without_moments, write_state
from memgrid.distill.training import StepSoFar, train
from memgrid.errors import InvalidError
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.trace import StepTrace
from memgrid.specs import AdapterSpec, Schedule
from memgrid.units import ReasonCode
from tests.models import make_tiny_model
from tests.training import FROZEN_A, LORA, PREFIX, course, make_spec, random_start

ADAPTERS = pytest.mark.parametrize("adapter", [PREFIX, LORA, FROZEN_A], ids=["prefix", "lora", "frozen-a"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return load_model(folder, torch.float32, torch.device("cpu"))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@ADAPTERS
def test_learns(model: Any, adapter: AdapterSpec) -> None:
    spec = make_spec(adapter, stop_step=24)
    _, trace = train(model, spec, random_start(adapter, model), course(spec))
    assert [entry.step for entry in trace] == list(range(24))
    assert trace[-1].loss < 0.95 * trace[0].loss


@ADAPTERS
def test_bits_do_not_depend_on_micro_batch_or_threads(model: Any, adapter: AdapterSpec, threads: None) -> None:
    spec, start = make_spec(adapter, stop_step=4), random_start(adapter, model)
    found = set()
    for micro_batch, count in [(1, 1), (2, 1), (3, 2), (4, 2)]:
        torch.set_num_threads(count)
        state, trace = train(model, spec, start, course(spec), micro_batch=micro_batch)
        found.add((state_bytes(state), trace))
    assert len(found) == 1


@ADAPTERS
@pytest.mark.parametrize("round_", [0, 1, 3], ids=["relay", "first round", "third round"])
def test_resumes_from_any_committed_state_to_the_same_bits(
    model: Any, adapter: AdapterSpec, round_: int, tmp_path: Path
) -> None:
    first = 8 if round_ == 3 else 0
    spec = make_spec(adapter, first_step=first, stop_step=first + 12, round=round_)
    committed: list[tuple[Path, tuple[StepTrace, ...]]] = []

    def keep(state: TrainState, trace: tuple[StepTrace, ...]) -> None:
        path = tmp_path / f"{state.step}.safetensors"
        write_state(path, state)
        committed.append((path, trace))

    start = replace(random_start(adapter, model), step=first)
    end, whole = train(model, spec, start, course(spec), on_segment=keep)
    assert [path.name for path, _ in committed] == [f"{first + step}.safetensors" for step in (3, 6, 9, 12)]
    for path, before in committed[:-1]:
        again, trace = train(model, spec, read_state(path), course(spec), trace=before)
        assert (state_bytes(again), trace) == (state_bytes(end), whole)


@ADAPTERS
def test_goes_on_from_the_middle_of_a_step_to_the_same_bits_however_rows_are_grouped(
    model: Any, adapter: AdapterSpec
) -> None:
    spec, start = make_spec(adapter, stop_step=4), random_start(adapter, model)
    moments: list[StepSoFar] = []
    end, whole = train(model, spec, start, course(spec), micro_batch=1, on_rows=lambda now: moments.append(now()))
    assert [moment.rows for moment in moments] == 4 * [1, 2, 3, 4]
    for number in (0, 5, 7, 15):
        again, trace = train(model, spec, start, course(spec), so_far=moments[number], micro_batch=2)
        assert (state_bytes(again), trace) == (state_bytes(end), whole)


@ADAPTERS
def test_relay_over_units_is_one_unit_to_the_bit(model: Any, adapter: AdapterSpec) -> None:
    alone = make_spec(adapter)
    end, _ = train(model, alone, random_start(adapter, model), course(alone))
    state = random_start(adapter, model)
    for first in (0, 4, 8):
        leg = make_spec(adapter, first_step=first, stop_step=first + 4)
        state, _ = train(model, leg, state, course(leg))
    assert state_bytes(state) == state_bytes(end)


@ADAPTERS
def test_a_round_is_adam_from_nothing_on_the_rows_and_rates_of_its_steps(model: Any, adapter: AdapterSpec) -> None:
    """Beside torch's own Adam, fed with the gradients that plain descent along the same path shows."""
    spec = make_spec(adapter, first_step=8, stop_step=12, total_steps=24, segment_steps=1, round=3)
    start = replace(random_start(adapter, model), step=8)
    states = [start]
    train(model, spec, without_moments(start), course(spec), on_segment=lambda state, _: states.append(state))
    torch_adam: dict[str, tuple[torch.nn.Parameter, torch.optim.Adam]] = {}
    for name, value in start.parameters.items():
        parameter = torch.nn.Parameter(torch.from_numpy(value.copy()))
        torch_adam[name] = parameter, torch.optim.Adam([parameter], betas=(BETA_1, BETA_2), eps=EPSILON)
    for before, after in pairwise(states):
        for name, (parameter, adam) in torch_adam.items():
            m = before.m.get(name, np.zeros_like(after.m[name]))
            parameter.grad = torch.from_numpy((after.m[name] - BETA_1 * m) / np.float32(1 - BETA_1))
            adam.param_groups[0]["lr"] = learning_rate(spec, before.step)
            adam.step()
    for name, (parameter, _) in torch_adam.items():
        np.testing.assert_allclose(states[-1].parameters[name], parameter.detach().numpy(), rtol=1e-3, atol=2e-4)


@ADAPTERS
def test_what_moments_a_round_is_given_does_not_matter(model: Any, adapter: AdapterSpec) -> None:
    spec = make_spec(adapter, first_step=8, stop_step=10, total_steps=24, round=3)
    start = replace(random_start(adapter, model), step=8)
    some = {name: np.ones_like(value) for name, value in start.parameters.items()}
    warm = replace(start, m=some, v=some)
    ends = {state_bytes(train(model, spec, each, course(spec))[0]) for each in (start, warm, without_moments(start))}
    assert len(ends) == 1


def test_parameters_alone_are_a_start_only_where_adam_begins(model: Any) -> None:
    start = without_moments(random_start(PREFIX, model))
    for step, spec in [(4, make_spec(first_step=4)), (6, make_spec(first_step=4, round=2))]:
        with pytest.raises(InvalidError, match=f"state: step {step}: expected Adam's moments"):
            train(model, spec, replace(start, step=step), course(spec))


def test_half_of_the_moments_is_no_state(tmp_path: Path, model: Any) -> None:
    write_state(tmp_path / "state", replace(random_start(PREFIX, model), v={}))
    with pytest.raises(InvalidError, match=r"adam\.v/: expected the names and shapes of the parameters"):
        read_state(tmp_path / "state")


def test_frozen_tokens_stay(model: Any) -> None:
    spec, start = make_spec(PREFIX), random_start(PREFIX, model)
    end, _ = train(model, spec, start, course(spec))
    before, after = start.parameters["prompt_embeddings"], end.parameters["prompt_embeddings"]
    assert np.array_equal(before[0], after[0])
    assert (before[1:] != after[1:]).all()


def test_weights_are_never_touched(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for adapter in (PREFIX, LORA):
        spec = make_spec(adapter, stop_step=2)
        train(model, spec, random_start(adapter, model), course(spec))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_run_that_blows_up_says_at_which_step(model: Any) -> None:
    spec = make_spec(LORA, learning_rate=1e39, warmup_steps=0)
    with pytest.raises(RefusedError, match=r"^step [12]: .*not finite$") as refused:
        train(model, spec, random_start(LORA, model), course(spec))
    assert refused.value.reason.code is ReasonCode.DIVERGED


def test_a_run_that_loses_what_it_had_learnt_is_stopped(model: Any) -> None:
    spec = make_spec(LORA, first_step=0, stop_step=12, learning_rate=1e-6)
    learnt = StepTrace(step=0, loss=1.5, tokens=100, gradient_norm=1.0)
    with pytest.raises(RefusedError, match=r"^step 2: .* more than 3 times 1.5, the lowest mean of 1$") as refused:
        train(model, spec, random_start(LORA, model), course(spec), trace=[learnt])
    assert refused.value.reason.code is ReasonCode.DIVERGED


def test_one_easy_step_is_not_what_all_others_are_measured_by(model: Any) -> None:
    spec = make_spec(LORA, first_step=0, stop_step=12, learning_rate=1e-6)
    before = [StepTrace(step=0, loss=loss, tokens=100, gradient_norm=1.0) for loss in (6.0, 6.0, 1.5, 6.0)]
    _, trace = train(model, spec, random_start(LORA, model), course(spec), trace=before)
    assert min(each.loss for each in trace[4:]) > 3 * 1.5


class Forgetful:
    """A decoder that has memory for so many rows at once and no more."""

    def __init__(self, decoder: Any, rows_max: int) -> None:
        self._decoder = decoder
        self._rows_max = rows_max
        self.asked: list[int] = []

    def __call__(self, **inputs: Any) -> Any:
        self.asked.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > self._rows_max:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self._decoder(**inputs)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, start = make_spec(PREFIX, stop_step=3, batch_rows=8), random_start(PREFIX, model)
    calm = train(model, spec, start, course(spec))
    small = Forgetful(model.get_decoder(), rows_max=2)
    monkeypatch.setattr(model, "get_decoder", lambda: small)
    heard: list[int] = []
    halved = train(model, spec, start, course(spec), micro_batch=8, on_halved=heard.append)
    assert heard == [4, 2]
    assert (state_bytes(halved[0]), halved[1]) == (state_bytes(calm[0]), calm[1])
    # Once found out, it is remembered: every later step begins with what fits.
    assert small.asked == [8, 4, *[2] * 12]


def test_a_machine_without_room_for_a_row_says_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, start = make_spec(PREFIX), random_start(PREFIX, model)
    monkeypatch.setattr(model, "get_decoder", lambda: Forgetful(None, rows_max=0))
    with pytest.raises(MemoryError, match="step 0: not even one row of 64 tokens fits"):
        train(model, spec, start, course(spec), micro_batch=4)


def test_start_of_another_adapter_or_step_is_refused(model: Any) -> None:
    spec = make_spec(PREFIX)
    with pytest.raises(InvalidError, match="state: base_model"):
        train(model, spec, random_start(LORA, model), course(spec))
    late = make_spec(PREFIX, first_step=4, stop_step=8)
    with pytest.raises(InvalidError, match="state: step 0: the unit trains steps 4 to 8"):
        train(model, late, random_start(PREFIX, model), course(late))


def test_learning_rate_goes_up_then_down(model: Any) -> None:
    for schedule, last in ((Schedule.CONSTANT, 0.1), (Schedule.LINEAR, 0.1 / 22), (Schedule.COSINE, 0.0006)):
        spec = make_spec(PREFIX, schedule=schedule)
        rates = [learning_rate(spec, step) for step in range(24)]
        assert rates[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
        assert rates[2:] == sorted(rates[2:], reverse=True)
        assert rates[-1] == pytest.approx(last, rel=0.2)
