"""Replays of caches: every cheat is caught by a piece it touches, and no honest way of computing is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from memgrid.digest import digest_of
from memgrid.distill.audit import audit
from memgrid.distill.claimed_kv import ClaimedKv
from memgrid.distill.model import load_model
from memgrid.distill.prefill_replay import first_layer, replayed_windows
from memgrid.errors import InvalidError
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.draws import sample
from memgrid.kinds.prefill import KV_FILE
from memgrid.kinds.prefill_audit import WINDOW_TOKENS, WINDOWS_MAX, drawn_windows
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, StoreDtype
from tests.kv_cheats import (
    CHEATS,
    CPU,
    Cheat,
    KvUnit,
    Pairs,
    claim,
    honest,
    honest_ways,
    make_kv_unit,
    without_its_past,
)
from tests.models import make_tiny_model

TOKENS, START = 96, 40
DRAWS = [bytes([number] * 32) for number in range(100)]
IDS = [(7 * place + place * place // 5) % 300 for place in range(TOKENS + START)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), layers=4)


@pytest.fixture(scope="module", params=["first", "chained"])
def unit(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> KvUnit:
    return made(folder, tmp_path_factory.mktemp(request.param), start=START if request.param == "chained" else 0)


def made(folder: Path, where: Path, *, start: int = 0, store: StoreDtype = StoreDtype.FLOAT32) -> KvUnit:
    model = load_model(folder, torch.float32, CPU).base_model
    return make_kv_unit(folder, model, where, IDS[START - start :], start=start, store=store)


def replay(
    unit: KvUnit,
    files: dict[str, Path],
    dtype: ComputeDtype = ComputeDtype.FLOAT32,
    *,
    draw: bytes = bytes(32),
    again: bool = False,
) -> Audit:
    return audit(
        unit.spec,
        model_folder=unit.folder,
        inputs=unit.inputs,
        files=files,
        compute_dtype=dtype,
        draw=draw,
        tolerances=BUILT_IN,
        again=again,
    )


@pytest.mark.parametrize("store", list(StoreDtype))
@pytest.mark.parametrize("start", [0, START], ids=["first", "chained"])
def test_honest_answers_pass_however_they_were_computed_and_checked(
    folder: Path, store: StoreDtype, start: int, tmp_path: Path
) -> None:
    unit = made(folder, tmp_path, start=start, store=store)
    for name, dtype, pairs in honest_ways(unit):
        files = claim(unit, pairs, tmp_path / "out")
        for again in (False, True):
            found = replay(unit, files, dtype, again=again)
            assert found.zone is Zone.PASS, (name, found.in_words())
            assert set(found.statistics) == set(found.limits)
            assert len(found.statistics) == (12 if start else 16)


def test_both_ways_of_checking_see_the_same(unit: KvUnit, tmp_path: Path) -> None:
    """Windows in one pass and one by one, in float32: what is left between them is rounding."""
    files = claim(unit, without_its_past(unit) if unit.former else honest(unit, tokens=unit.tokens[::-1]), tmp_path)
    one, other = replay(unit, files), replay(unit, files, again=True)
    assert one.zone is other.zone is Zone.FAULT
    for name, value in one.statistics.items():
        assert value == pytest.approx(other.statistics[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("cheat", "claims"), CHEATS, ids=[cheat.__name__ for cheat, _ in CHEATS])
def test_cheat_is_caught(unit: KvUnit, cheat: Cheat, claims: tuple[ComputeDtype, ...], tmp_path: Path) -> None:
    if cheat is without_its_past and not unit.former:
        pytest.skip("a first unit has no past to leave out")
    files = claim(unit, cheat(unit), tmp_path)
    # The last quarter is not in every draw's windows: this draw's it is.
    draw = next(draw for draw in DRAWS if drawn_windows(unit.spec, draw)[-1].start >= TOKENS * 3 // 4)
    for dtype in claims:
        for again in (False, True):
            found = replay(unit, files, dtype, draw=draw, again=again)
            assert found.zone is Zone.FAULT, found.in_words()
            assert ", at " in found.in_words()


def cloned(pairs: Pairs) -> Pairs:
    return [(k.clone(), v.clone()) for k, v in pairs]


def test_the_place_of_a_difference_is_told(unit: KvUnit, tmp_path: Path) -> None:
    pairs = cloned(honest(unit))
    (window, *_) = drawn_windows(unit.spec, bytes(32))[2:]
    pairs[2][1][:, window.start + 1] *= 1.5
    found = replay(unit, claim(unit, pairs, tmp_path / "a"))
    assert found.where in (f"layer 2, tokens {window.start} to {window.stop}", f"layer 2, token {window.start + 1}")
    pairs = cloned(honest(unit))
    pairs[0][0][:, 77] *= 1.5
    assert replay(unit, claim(unit, pairs, tmp_path / "b")).in_words().endswith(", at layer 0, token 77")


def test_bfloat16_that_calls_itself_float32_is_found_out(unit: KvUnit, tmp_path: Path) -> None:
    rough = next(pairs for name, _, pairs in honest_ways(unit) if name == "bfloat16")
    assert replay(unit, claim(unit, rough, tmp_path)).zone is Zone.FAULT


def test_the_cost_is_that_of_what_was_computed(folder: Path, tmp_path: Path) -> None:
    unit = made(folder, tmp_path)
    found = replay(unit, claim(unit, honest(unit), tmp_path / "out"))
    # 64 inputs to four heads of queries and two each of keys and values; then four windows of four tokens.
    projections = 2 * TOKENS * 64 * 8 * 16
    weights = 4 * (64 * 128 + 64 * 64 + 3 * 64 * 128) + 4 * 2 * 64 + 64
    windows = drawn_windows(unit.spec, bytes(32))
    pairs = sum(4 * window.start + 10 for window in windows)
    assert found.flops == projections + 16 * 2 * weights + 4 * 4 * 64 * pairs


@pytest.mark.parametrize("change", ["shape", "tokens", "none"])
def test_files_of_another_form_are_refused(unit: KvUnit, change: str, tmp_path: Path) -> None:
    files = claim(unit, honest(unit), tmp_path)
    other = unit
    if change == "shape":
        files = claim(unit, honest(unit)[:-1], tmp_path)
    elif change == "tokens":
        files = claim(replace(unit, tokens=unit.tokens[::-1]), honest(unit), tmp_path)
    else:
        files[KV_FILE].write_bytes(b"nothing")
    with pytest.raises(RefusedError):
        replay(other, files)


def test_a_past_that_does_not_reach_the_unit_is_nobodys_fault(folder: Path, tmp_path: Path) -> None:
    unit = made(folder, tmp_path, start=START)
    files = claim(unit, honest(unit), tmp_path / "out")
    del unit.inputs["past/00001"]
    with pytest.raises(InvalidError, match="its past holds 13 tokens") as caught:
        replay(unit, files)
    assert not isinstance(caught.value, RefusedError)


def spec_of(tokens: int) -> PrefillSpec:
    return PrefillSpec(
        model=digest_of(b"m"),
        tokens=digest_of(b"t"),
        token_count=tokens,
        start=0,
        parent=None,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=StoreDtype.BFLOAT16,
    )


@given(tokens=st.integers(1, 20_000), draw=st.binary(min_size=32, max_size=32))
def test_windows_lie_apart_within_the_unit_and_begin_with_its_first_tokens(tokens: int, draw: bytes) -> None:
    windows = drawn_windows(spec_of(tokens), draw)
    assert windows[0].start == 0
    assert all(0 < len(window) <= WINDOW_TOKENS and window.stop <= tokens for window in windows)
    assert all(one.stop <= other.start for one, other in pairwise(windows))
    assert len(windows) <= WINDOWS_MAX
    assert sum(map(len, windows)) <= max(16, tokens / 64)


def test_every_token_is_drawn_about_as_often_as_any_other() -> None:
    spec = spec_of(256)
    counts = dict.fromkeys(range(1, 64), 0)
    for number in range(3000):
        for window in drawn_windows(spec, number.to_bytes(32, "big"))[1:]:
            counts[window.start // WINDOW_TOKENS] += 1
    # 3000 draws of 3 of 63: 143 each, give or take 12; five times that is seen once in a million.
    assert all(83 < count < 203 for count in counts.values())


@given(st.binary(), st.integers(0, 50), st.integers(0, 60))
def test_a_sample_has_no_member_twice_and_none_from_outside(draw: bytes, size: int, of: int) -> None:
    picked = sample(draw, "test", range(5, 5 + of), size)
    assert len(set(picked)) == len(picked) == min(size, of)
    assert all(5 <= each < 5 + of for each in picked) and list(picked) == sorted(picked)


OTHERS: dict[str, dict[str, int | bool]] = {
    "mistral": {"sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_replayed_by_their_own_code(kind: str, tmp_path: Path) -> None:
    """With attention that slides in all layers, in some of them, and with positions that are learned."""
    config = AutoConfig.for_model(
        kind,
        **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, **OTHERS[kind]},
    )  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    unit = make_kv_unit(tmp_path, model.base_model, tmp_path, IDS, start=START)
    windows = [range(0, 4), range(20, 24), range(64, 68)]
    files = claim(unit, honest(unit), tmp_path / "honest")
    past = [path for name, path in sorted(unit.inputs.items()) if name.startswith("past/")]
    claimed = ClaimedKv(past, files[KV_FILE], START)
    found = [first_layer(model, claimed, unit.tokens, piece=33).of_first_layer()]
    found += [
        replayed_windows(model, claimed, unit.tokens, windows, together=together).of_windows(START)
        for together in (True, False)
    ]
    assert max(value for each in found for value, _ in each.values()) < 2e-6
    blind = ClaimedKv(past, claim(unit, without_its_past(unit), tmp_path / "blind")[KV_FILE], START)
    for together in (True, False):
        false = replayed_windows(model, blind, unit.tokens, windows, together=together).of_windows(START)
        assert false["window V worst block"][0] > 0.01
