"""Merging rounds: what liars can do is bounded, honest rounds follow DiLoCo, and real training survives poison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid.campaign_distill import Merge, Rounds
from memgrid.distill.adapters import PREFIX_TENSOR
from memgrid.distill.aggregate import (
    Merged,
    MergeReport,
    centred_weights,
    merge,
    trimmed_at_each_end,
    trimmed_mean,
)
from memgrid.distill.model import load_model
from memgrid.distill.state import TrainState, cold_state, read_state, without_moments, write_state
from memgrid.distill.training import train
from memgrid.distill.velocity import write_velocity
from memgrid.errors import InvalidError
from memgrid.specs import AdapterSpec
from tests.models import make_tiny_model
from tests.training import LORA, PREFIX, course, make_spec, random_start

H = 4
MEAN = Rounds(members=5, local_steps=H, merge=Merge.MEAN)
TRIMMED = Rounds(members=5, local_steps=H, merge=Merge.TRIMMED_MEAN, trim=0.2)
CLIPPED = Rounds(members=5, local_steps=H, merge=Merge.CENTRED_CLIPPING)
RULES = pytest.mark.parametrize("rule", [MEAN, TRIMMED, CLIPPED], ids=lambda rule: rule.merge.value)
Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return load_model(folder, torch.float32, torch.device("cpu"))


def state_of(values: Array, step: int = 0) -> TrainState:
    return TrainState(step=step, parameters={PREFIX_TENSOR: values})


def merged(
    folder: Path,
    base: TrainState,
    states: Sequence[TrainState],
    rule: Rounds,
    bases: Sequence[TrainState] = (),
    *,
    velocity: Path | None = None,
) -> tuple[TrainState, MergeReport]:
    def written(name: str, state: TrainState) -> Path:
        write_state(folder / name, state)
        return folder / name

    from_ = [written(f"base-{number}", each) for number, each in enumerate(bases or [base] * len(states))]
    paths = [written(f"state-{number}", each) for number, each in enumerate(states)]
    into = Merged(state=folder / "merged", velocity=folder / "velocity")
    report = merge(written("base", base), paths, from_, rule, PREFIX, into, velocity=velocity)
    return read_state(folder / "merged"), report


def some(seed: int, count: int, rows: int = 6) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, rows, 8)).astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    members=st.integers(1, 7),
    rule=st.sampled_from([MEAN, TRIMMED, CLIPPED]),
    order=st.randoms(),
)
def test_who_comes_first_does_not_matter(seed: int, members: int, rule: Rounds, order: Any) -> None:
    base, *values = some(seed, members + 1)
    states = [state_of(value, H) for value in values]
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        first, report = merged(Path(one), state_of(base), states, rule)
        mixed = list(range(members))
        order.shuffle(mixed)
        _, again = merged(Path(other), state_of(base), [states[index] for index in mixed], rule)
        for name in ("merged", "velocity"):
            assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes()
    assert first.step == H and not (first.parameters[PREFIX_TENSOR][0] - base[0]).any()
    assert [report.delta_norms[index] for index in mixed] == list(again.delta_norms)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), honest=st.integers(1, 12), liars=st.integers(0, 6), size=st.floats(1, 1e12))
def test_trimmed_mean_stays_among_the_honest(seed: int, honest: int, liars: int, size: float) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=(honest, 16))
    lies = draw.normal(size=(liars, 16)) * size
    values = draw.permutation(np.concatenate([truth, lies]))
    trimmed = trimmed_at_each_end(len(values), TRIMMED)
    found = trimmed_mean(values, trimmed)
    if liars <= TRIMMED.trim * len(values):
        assert (found >= truth.min(axis=0) - 1e-12).all() and (found <= truth.max(axis=0) + 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.floats(30, 1e9))
def test_clipping_bounds_what_two_of_ten_can_do(seed: int, size: float) -> None:
    draw = np.random.default_rng(seed)
    direction = draw.normal(size=32)
    truth = direction + 0.5 * draw.normal(size=(8, 32))
    values = np.concatenate([truth, -size * direction[None] * np.ones((2, 1))])
    rows = np.concatenate([np.median(values, axis=0, keepdims=True), values])
    weights, limit = centred_weights(rows @ rows.T)
    error = np.linalg.norm(weights @ rows - truth.mean(axis=0))
    assert weights.sum() == pytest.approx(1) and error < 0.6 * limit
    assert np.linalg.norm(values.mean(axis=0) - truth.mean(axis=0)) > 2 * limit


@RULES
def test_alike_members_agree(rule: Rounds, tmp_path: Path) -> None:
    base, moved = some(1, 2)
    moved[0] = base[0]
    found, report = merged(tmp_path, state_of(base), [state_of(moved, H)] * 5, rule)
    expected = base + 0.7 * 1.9 * (moved - base)
    np.testing.assert_allclose(found.parameters[PREFIX_TENSOR], expected, rtol=1e-5, atol=1e-6)
    assert not found.has_moments
    assert report.agreements == pytest.approx([1.0] * 5)


def test_outer_step_is_nesterovs_of_torch(tmp_path: Path) -> None:
    start, *deltas = some(2, 10)
    for delta in deltas:
        delta[0] = 0
    parameter = torch.nn.Parameter(torch.from_numpy(start.astype(np.float64)))
    optimiser = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    base = state_of(start)
    for round_ in range(3):
        members = deltas[3 * round_ : 3 * round_ + 3]
        before = base.parameters[PREFIX_TENSOR]
        states = [state_of((before + delta).astype(np.float32), base.step + H) for delta in members]
        base, _ = merged(tmp_path, base, states, MEAN, velocity=tmp_path / "velocity" if round_ else None)
        parameter.grad = -torch.from_numpy(np.mean(members, axis=0).astype(np.float64))
        optimiser.step()
    np.testing.assert_allclose(base.parameters[PREFIX_TENSOR], parameter.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert base.step == 3 * H


def test_late_delta_counts_from_its_own_base(tmp_path: Path) -> None:
    old, here, late, present = some(3, 4)
    for each in (here, late, present):
        each[0] = old[0]
    base = state_of(here, H)
    found, report = merged(
        tmp_path,
        base,
        [state_of(late, H), state_of(present, 2 * H)],
        MEAN,
        [state_of(old), base],
    )
    delta = ((late - old) + (present - here)) / 2
    np.testing.assert_allclose(found.parameters[PREFIX_TENSOR], here + 0.7 * 1.9 * delta, rtol=1e-4, atol=1e-5)
    assert (report.step, report.late) == (2 * H, 1)


def test_large_tensors_are_merged_slice_by_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *values = some(4, 4, rows=40)
    states = [state_of(value, H) for value in values]
    results = {}
    for size in (7, 1 << 16):
        monkeypatch.setattr("memgrid.distill.aggregate.SLICE", size)
        results[size] = merged(tmp_path, state_of(base), states, TRIMMED)[0].parameters[PREFIX_TENSOR]
    assert np.array_equal(results[7], results[1 << 16])


def _nan(state: TrainState) -> TrainState:
    values = state.parameters[PREFIX_TENSOR].copy()
    values[2, 3] = np.nan
    return replace(state, parameters={PREFIX_TENSOR: values})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_nan, "state 1: .*expected finite"),
        (lambda state: state_of(state.parameters[PREFIX_TENSOR][:4], H), r"state 1: prompt_embeddings: expected \(6"),
        (lambda state: replace(state, step=0), "state 1: step 0, its base has 0"),
        (lambda state: replace(state, step=H - 1), r"one step, found \[3, 4\]"),
    ],
)
def test_states_that_do_not_fit(spoil: Callable[[TrainState], TrainState], message: str, tmp_path: Path) -> None:
    base, *values = some(5, 3)
    states = [state_of(value, H) for value in values]
    with pytest.raises(InvalidError, match=message):
        merged(tmp_path, state_of(base), [states[0], spoil(states[1])], TRIMMED)
    assert not (tmp_path / "merged").exists()


def test_too_old_a_base(tmp_path: Path) -> None:
    old, here, *values = some(6, 4)
    base = state_of(here, 3 * H)
    with pytest.raises(InvalidError, match="base is of step 0, at most 2 rounds of 4 steps before step 12"):
        merged(tmp_path, base, [state_of(values[0], 4 * H), state_of(values[1], H)], TRIMMED, [base, state_of(old)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values: {PREFIX_TENSOR: values[:4]}, "velocity-0: expected the names and shapes"),
        (lambda values: {PREFIX_TENSOR: values * np.float32(np.nan)}, "prompt_embeddings: expected finite"),
        (lambda values: {"other": values}, "velocity-0: expected the names and shapes"),
    ],
)
def test_velocity_that_does_not_fit(spoil: Callable[[Array], dict[str, Array]], message: str, tmp_path: Path) -> None:
    base, value = some(7, 2)
    write_velocity(tmp_path / "velocity-0", spoil(value))
    with pytest.raises(InvalidError, match=message):
        merged(tmp_path, state_of(base), [state_of(value, H)], MEAN, velocity=tmp_path / "velocity-0")
    assert not (tmp_path / "merged").exists()


def test_a_state_is_no_velocity(tmp_path: Path) -> None:
    base, value = some(8, 2)
    write_state(tmp_path / "velocity-0", state_of(value))
    with pytest.raises(InvalidError, match=r"not a memgrid\.velocity\.v1 file"):
        merged(tmp_path, state_of(base), [state_of(value, H)], MEAN, velocity=tmp_path / "velocity-0")


def test_three_hosts_in_rounds_lose_nothing_to_one_with_the_same_tokens(model: Any, tmp_path: Path) -> None:
    """Rounds of 32 steps that begin Adam anew, against one host whose steps have the rows of all members."""
    members, steps, rounds = 3, 32, 3
    start, total = random_start(LORA, model), steps * rounds
    whole = make_spec(
        LORA, stop_step=total, total_steps=total, segment_steps=steps, batch_rows=members, learning_rate=0.002
    )
    alone, _ = train(model, whole, start, course(whole, 1, 2, 3))
    base, rule = without_moments(start), Rounds(members=members, local_steps=steps)
    for number in range(rounds):
        spec = replace(
            whole,
            first_step=number * steps,
            stop_step=(number + 1) * steps,
            round=number + 1,
            streams=members,
            batch_rows=1,
        )
        own = [replace(spec, stream=stream) for stream in range(members)]
        states = [without_moments(train(model, each, base, course(each, 1, 2, 3))[0]) for each in own]
        base = _merged_round(tmp_path, base, states, rule, LORA, is_first=number == 0)
    judge = make_spec(LORA, stop_step=1, batch_rows=24)
    unseen = [
        train(model, judge, cold_state(state.parameters), course(judge, 11, 12, 13))[1][0].loss
        for state in (start, alone, base)
    ]
    assert unseen[1] < 0.8 * unseen[0], "one host learns something to compare with"
    assert unseen[2] < 1.02 * unseen[1]


# Poison in real training. One of five members lies in every round.

Attack = Callable[[TrainState, list[TrainState]], TrainState]


def _moved(base: TrainState, honest: TrainState, delta: dict[str, Array]) -> TrainState:
    parameters = {name: (base.parameters[name] + value).astype(np.float32) for name, value in delta.items()}
    if PREFIX_TENSOR in parameters:
        parameters[PREFIX_TENSOR][0] = base.parameters[PREFIX_TENSOR][0]
    return replace(honest, parameters=parameters)


def _flipped(base: TrainState, honest: list[TrainState]) -> TrainState:
    one = honest[0]
    delta = {name: -10 * (value - base.parameters[name]) for name, value in one.parameters.items()}
    return _moved(base, one, delta)


def _random(base: TrainState, honest: list[TrainState]) -> TrainState:
    one, draw = honest[0], np.random.default_rng(base.step)
    spread = {name: 100 * (value - base.parameters[name]).std() for name, value in one.parameters.items()}
    delta = {name: draw.normal(0, spread[name], value.shape).astype("f4") for name, value in one.parameters.items()}
    return _moved(base, one, delta)


def _a_little_is_enough(base: TrainState, honest: list[TrainState]) -> TrainState:
    """As far off as still looks honest: the mean less 1.5 deviations (ALIE, arXiv 1902.06156)."""
    delta = {}
    for name, before in base.parameters.items():
        moved = np.stack([state.parameters[name] - before for state in honest])
        delta[name] = (moved.mean(axis=0) - 1.5 * moved.std(axis=0)).astype(np.float32)
    return _moved(base, honest[0], delta)


def _rounds(
    model: Any, adapter: AdapterSpec, rule: Rounds, attack: Attack | None, folder: Path, rounds: int = 2
) -> float:
    """Loss after some rounds of five members, over conversations of their own, as the first step of a further run."""
    base = random_start(adapter, model)
    rate = 0.05 if adapter is PREFIX else 0.005
    for number in range(rounds):
        first = number * H
        spec = make_spec(
            adapter,
            first_step=first,
            stop_step=first + H,
            total_steps=10 * H,
            segment_steps=H,
            learning_rate=rate,
            batch_rows=2,
            round=number + 1,
            streams=5,
        )
        members = [replace(spec, stream=stream) for stream in range(5)]
        states = [without_moments(train(model, each, base, course(each))[0]) for each in members]
        if attack is not None:
            states[0] = attack(base, states[1:])
        base = _merged_round(folder, base, states, rule, adapter, is_first=number == 0)
    judge = make_spec(
        adapter, first_step=base.step, stop_step=base.step + 1, total_steps=10 * H, batch_rows=12, round=rounds + 1
    )
    return train(model, judge, base, course(judge))[1][0].loss


def _merged_round(
    folder: Path, base: TrainState, states: list[TrainState], rule: Rounds, adapter: AdapterSpec, *, is_first: bool
) -> TrainState:
    write_state(folder / "base", base)
    paths = [folder / f"state-{number}" for number in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        write_state(path, state)
    into = Merged(state=folder / "merged", velocity=folder / "velocity")
    velocity = None if is_first else into.velocity
    merge(folder / "base", paths, [folder / "base"] * len(paths), rule, adapter, into, velocity=velocity)
    return read_state(folder / "merged")


@pytest.mark.parametrize("adapter", [PREFIX, LORA], ids=["prefix", "lora"])
def test_a_fifth_of_poison_barely_moves_the_robust_and_breaks_the_mean(
    model: Any, adapter: AdapterSpec, tmp_path: Path
) -> None:
    before = _rounds(model, adapter, MEAN, None, tmp_path, rounds=0)
    clean = _rounds(model, adapter, MEAN, None, tmp_path)
    gain = before - clean
    assert gain > 0.1
    lost = {
        (rule.merge, attack.__name__): (_rounds(model, adapter, rule, attack, tmp_path) - clean) / gain
        for rule in (MEAN, TRIMMED, CLIPPED)
        for attack in (_flipped, _random, _a_little_is_enough)
    }
    assert all(share < 0.25 for (rule, _), share in lost.items() if rule is Merge.TRIMMED_MEAN), lost
    assert all(share < 0.4 for (rule, _), share in lost.items() if rule is Merge.CENTRED_CLIPPING), lost
    assert min(lost[Merge.MEAN, "_flipped"], lost[Merge.MEAN, "_random"]) > 0.5, lost
