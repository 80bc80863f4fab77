"""Sketches stand for caches: equal ones are at distance 0, others at about the distance of what they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save, save_file

from memgrid.errors import InvalidError
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.sketch import (
    BLOCK_TOKENS,
    Sketch,
    distances,
    is_recomputed,
    parse_sketch,
    sketch_bytes,
    sketch_file,
)
from memgrid.units import ReasonCode, UnitKey

KEY = UnitKey("ab" * 32)
LAYERS, HEADS, TOKENS, DIM = 3, 2, 200, 16


def cache_of(rng: np.random.Generator, tokens: int = TOKENS) -> dict[str, np.ndarray]:
    """A random cache; later layers are larger, as in real models."""
    return {
        f"l{layer}.{half}": (rng.standard_normal((HEADS, tokens, DIM)) * (layer + 1)).astype(np.float32)
        for layer in range(LAYERS)
        for half in ("k", "v")
    }


def sketch_of(cache: dict[str, np.ndarray], folder: Path, key: UnitKey = KEY) -> Sketch:
    tokens = cache["l0.k"].shape[1]
    path = folder / "kv.safetensors"
    save_file({"tokens": np.arange(tokens, dtype=np.int32), **cache}, path)
    return parse_sketch(sketch_file(path, key), LAYERS, tokens)


def true_distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray], name: str) -> float:
    scale = np.sqrt((np.square(a[name]).sum() + np.square(b[name]).sum()) / 2)
    return float(np.sqrt(np.square(a[name] - b[name]).sum()) / scale)


@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-4, 1e-2, 0.3]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_estimated_distance_is_close_to_the_true_one(tmp_path: Path, seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    honest = cache_of(rng)
    other = {
        name: values + rng.standard_normal(values.shape).astype(np.float32) * size for name, values in honest.items()
    }
    found = distances(sketch_of(honest, tmp_path), sketch_of(other, tmp_path))
    true = [true_distance(honest, other, f"l{layer}.v") for layer in range(LAYERS)]
    # 13 blocks of 6 projections scatter by 8 %; five times that is seen once in a million.
    assert found["V layer 0"] == pytest.approx(true[0], rel=0.4)
    assert found["V median"] == pytest.approx(float(np.median(true)), rel=0.4)
    assert found["V worst layer"] >= found["V median"]


def test_estimate_has_no_bias(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    honest = cache_of(rng)
    other = {
        name: values + rng.standard_normal(values.shape).astype(np.float32) * 0.05 for name, values in honest.items()
    }
    true = true_distance(honest, other, "l0.k")
    ratios = []
    for number in range(40):
        key = UnitKey(f"{number:064x}")
        found = distances(sketch_of(honest, tmp_path, key), sketch_of(other, tmp_path, key))
        ratios.append(found["K layer 0"] / true)
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)


@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_files_are_at_distance_zero_exactly(tmp_path: Path, seed: int, tokens: int) -> None:
    cache = cache_of(np.random.default_rng(seed), tokens)
    found = distances(sketch_of(cache, tmp_path), sketch_of(cache, tmp_path))
    assert set(found.values()) == {0.0} and len(found) == 8


@given(
    place=st.tuples(
        st.integers(0, LAYERS - 1), st.sampled_from("kv"), st.integers(0, HEADS - 1), st.integers(0, TOKENS - 1)
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_number_counts(tmp_path: Path, place: tuple[int, str, int, int]) -> None:
    layer, half, head, token = place
    cache = cache_of(np.random.default_rng(1))
    changed = {name: values.copy() for name, values in cache.items()}
    changed[f"l{layer}.{half}"][head, token, 7] += 5.0
    found = distances(sketch_of(cache, tmp_path), sketch_of(changed, tmp_path))
    statistic = found["K worst block"] if half == "k" else found["V worst block"]
    assert statistic > 0.01


def test_scaled_cache_is_seen_by_its_norm(tmp_path: Path) -> None:
    cache = cache_of(np.random.default_rng(2))
    scaled = {name: values * np.float32(1.05) for name, values in cache.items()}
    assert distances(sketch_of(cache, tmp_path), sketch_of(scaled, tmp_path))["V median"] > 0.045


def test_projections_depend_on_the_unit(tmp_path: Path) -> None:
    cache = cache_of(np.random.default_rng(3))
    mine, other = sketch_of(cache, tmp_path), sketch_of(cache, tmp_path, UnitKey("cd" * 32))
    assert np.array_equal(mine.k[..., 0], other.k[..., 0])
    assert not np.array_equal(mine.k[..., 1:], other.k[..., 1:])


def test_bfloat16_is_read_as_it_is_stored(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    cache = {
        name: torch.from_numpy(values).to(torch.bfloat16)
        for name, values in cache_of(np.random.default_rng(4)).items()
    }
    save_torch(cache, tmp_path / "bf16.safetensors")
    rounded = {name: values.float().numpy() for name, values in cache.items()}
    stored = parse_sketch(sketch_file(tmp_path / "bf16.safetensors", KEY), LAYERS, TOKENS)
    assert distances(stored, sketch_of(rounded, tmp_path))["K worst block"] == 0


def test_sketch_is_a_small_part_of_the_cache() -> None:
    cache_bytes = 30 * 2 * 3 * 64 * 256 * 2  # SmolLM2-135M, 256 tokens in bfloat16
    assert sketch_bytes(30, 256) / cache_bytes < 0.005


def test_recomputed_sketch_may_differ_by_rounding_and_no_more(tmp_path: Path) -> None:
    cache = cache_of(np.random.default_rng(6))
    mine = sketch_of(cache, tmp_path)
    rounded = Sketch(k=np.nextafter(mine.k, np.float32(np.inf)), v=mine.v)
    assert is_recomputed(rounded, mine)
    other = Sketch(k=mine.k, v=mine.v.copy())
    other.v[1, 2, 3] += np.float32(1e-3) * other.v[1, 2, 0]
    assert not is_recomputed(other, mine)


def good_sketch() -> dict[str, np.ndarray]:
    blocks = -(-TOKENS // BLOCK_TOKENS)
    return {half: np.ones((LAYERS, blocks, 7), dtype=np.float32) for half in "kv"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ReasonCode.BAD_SKETCH),
        (b"\xff" * 64, ReasonCode.BAD_SKETCH),
        (save(good_sketch())[:-1], ReasonCode.BAD_SKETCH),
        (save(good_sketch()) + b"\0", ReasonCode.BAD_SKETCH),
        (save(good_sketch() | {"more": np.ones(1, dtype=np.float32)}), ReasonCode.BAD_SKETCH),
        (save({"k": good_sketch()["k"]}), ReasonCode.BAD_SKETCH),
        (save(good_sketch() | {"k": good_sketch()["k"][:, :-1].copy()}), ReasonCode.BAD_SKETCH),
        (save(good_sketch() | {"k": good_sketch()["k"].astype(np.float16)}), ReasonCode.BAD_SKETCH),
        (save(good_sketch() | {"k": -good_sketch()["k"]}), ReasonCode.BAD_SKETCH),
        (save(good_sketch() | {"v": good_sketch()["v"] * np.float32(np.nan)}), ReasonCode.NOT_FINITE),
        (save(good_sketch() | {"v": good_sketch()["v"] * np.float32(np.inf)}), ReasonCode.NOT_FINITE),
        (b"\0" * 10_000_000, ReasonCode.BAD_SKETCH),
    ],
)
def test_sketch_that_is_none_is_refused_with_a_typed_reason(content: bytes, reason: ReasonCode) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_sketch(content, LAYERS, TOKENS)
    assert refused.value.reason.code is reason
    assert isinstance(refused.value, InvalidError)


def test_good_sketch_passes_as_it_is() -> None:
    parsed = parse_sketch(save(good_sketch()), LAYERS, TOKENS)
    assert np.array_equal(parsed.k, load(save(good_sketch()))["k"])


def test_projections_without_a_norm_are_infinitely_far_away() -> None:
    nothing = Sketch(k=np.zeros((1, 1, 7), np.float32), v=np.zeros((1, 1, 7), np.float32))
    lie = Sketch(k=nothing.k, v=nothing.v.copy())
    lie.v[..., 1] = 1
    assert set(distances(nothing, nothing).values()) == {0.0}
    assert distances(nothing, lie)["V median"] == np.inf
