"""Sketches stand for caches: equal ones are at distance 0, others at about the distance of what they stand for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save, save_file

from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.kinds.sketch import (
    PROJECTIONS,
    SKETCH_FORMAT,
    Sketch,
    distances,
    is_recomputed,
    parse_sketch,
    sketch_content,
    sketch_file,
    sketch_form,
)
from memgrid.units import ReasonCode, StoreDtype, UnitKey

KEY = UnitKey("ab" * 32)
LAYERS, HEADS, TOKENS, DIM = 3, 2, 600, 16
TINY = ModelGeometry(
    layers=LAYERS, heads=4, kv_heads=HEADS, head_dim=DIM, hidden=64, vocab=384, parameters=10**5, tied_embeddings=True
)
FORM = sketch_form(TINY, StoreDtype.FLOAT32, TOKENS)


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
    return parse_sketch(sketch_file(path, key), sketch_form(TINY, StoreDtype.FLOAT32, tokens))


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
    # 12 blocks of 6 projections scatter by 8 %; five times that is seen once in a million.
    assert FORM.blocks == 12
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
    form = sketch_form(TINY, StoreDtype.BFLOAT16, TOKENS)
    stored = parse_sketch(sketch_file(tmp_path / "bf16.safetensors", KEY), form)
    assert is_recomputed(stored, exactly(rounded, form.block_tokens))


@given(
    layers=st.integers(1, 130),
    kv_heads=st.integers(1, 16),
    head_dim=st.sampled_from([16, 32, 64, 96, 128, 256]),
    store=st.sampled_from(StoreDtype),
    tokens=st.integers(1, 9000),
)
@settings(deadline=None)
def test_sketch_is_at_most_half_a_per_cent_of_the_cache(
    layers: int, kv_heads: int, head_dim: int, store: StoreDtype, tokens: int
) -> None:
    geometry = dataclasses.replace(TINY, layers=layers, kv_heads=kv_heads, head_dim=head_dim)
    form = sketch_form(geometry, store, tokens)
    shape = (layers, form.blocks, 1 + PROJECTIONS)
    whole = len(sketch_content(Sketch(k=np.zeros(shape, np.float32), v=np.zeros(shape, np.float32))))
    # Less than one block a layer it can't be: that is too much of less than so many bytes.
    least = 200 * (2 * layers * 28 + 256)
    cache_bytes = geometry.kv_bytes(tokens, store)
    assert form.blocks == 1 if cache_bytes < least else whole <= cache_bytes / 200
    assert form.block_tokens >= min(16, tokens) and form.blocks * form.block_tokens >= tokens
    assert (form.blocks - 1) * form.block_tokens < tokens


def exactly(cache: dict[str, np.ndarray], block_tokens: int) -> Sketch:
    """The sketch as it is defined, in double precision and all at once."""
    found = {}
    for half in ("k", "v"):
        heads, tokens, dim = cache[f"l0.{half}"].shape
        count = heads * block_tokens * dim * PROJECTIONS
        stream = hashlib.shake_256(f"{KEY}{half}".encode()).digest(-(-count // 8))
        bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count)
        signs = (1.0 - 2.0 * bits).reshape(heads, block_tokens, dim, PROJECTIONS)
        layers = []
        for layer in range(len(cache) // 2):
            values = cache[f"l{layer}.{half}"].astype(np.float64)
            rows = []
            for first in range(0, tokens, block_tokens):
                block = values[:, first : first + block_tokens]
                projected = np.einsum("htd,htdp->p", block, signs[:, : block.shape[1]])
                rows.append([np.sqrt((block**2).sum()), *projected])
            layers.append(rows)
        found[half] = np.array(layers, dtype=np.float32)
    return Sketch(k=found["k"], v=found["v"])


@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 300), peak=st.sampled_from([1.0, 1e3, 1e6]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streamed_sketch_is_the_defined_one(tmp_path: Path, seed: int, tokens: int, peak: float) -> None:
    """Also where a few numbers are a million times as large as the rest, as some are in real models."""
    rng = np.random.default_rng(seed)
    cache = cache_of(rng, tokens)
    for values in cache.values():
        values[0, 0, 3] *= peak
    form = sketch_form(TINY, StoreDtype.FLOAT32, tokens)
    made, exact = sketch_of(cache, tmp_path), exactly(cache, form.block_tokens)
    assert is_recomputed(made, exact)
    for one, other in ((made.k, exact.k), (made.v, exact.v)):
        assert np.abs(one - other).max() <= 5e-6 * other[..., 0].max()


ELSEWHERE = """
import sys
from pathlib import Path
from memgrid.kinds.sketch import sketch_file
sys.stdout.buffer.write(sketch_file(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.parametrize("instructions", ["Prescott", "Nehalem", "Sandybridge", "Haswell"])
def test_other_instructions_yield_the_same_sketch_up_to_the_tolerance(tmp_path: Path, instructions: str) -> None:
    """What other processors would have computed: the library of numpy for Linux chooses its kernels by this."""
    cache = cache_of(np.random.default_rng(8), 4000)
    mine = sketch_of(cache, tmp_path)
    made = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "kv.safetensors"), KEY],
        env={**os.environ, "OPENBLAS_CORETYPE": instructions},
        stdout=subprocess.PIPE,
        check=True,
    )
    other = parse_sketch(made.stdout, sketch_form(TINY, StoreDtype.FLOAT32, 4000))
    assert is_recomputed(other, mine)
    for one, two in ((mine.k, other.k), (mine.v, other.v)):
        assert (np.abs(one - two) <= 5e-6 * one[..., :1]).all()


def test_estimates_keep_to_their_bound(tmp_path: Path) -> None:
    """Of a block, with many signs: no bias, the spread that fourth moments allow, and the tails of Achlioptas."""
    cache = cache_of(np.random.default_rng(9), 16)
    other = {name: values.copy() for name, values in cache.items()}
    # The worst case for a sketch is a difference that is spread; a single number is estimated exactly.
    for values in other.values():
        values += np.random.default_rng(10).standard_normal(values.shape).astype(np.float32) * 0.1
    ratios = []
    for number in range(250):
        key = UnitKey(f"{number:064x}")
        one, two = sketch_of(cache, tmp_path, key), sketch_of(other, tmp_path, key)
        for half, a, b in (("k", one.k, two.k), ("v", one.v, two.v)):
            for layer in range(LAYERS):
                name = f"l{layer}.{half}"
                true = np.square(other[name].astype(np.float64) - cache[name]).sum()
                ratios.append(((a[layer, 0, 1:].astype(np.float64) - b[layer, 0, 1:]) ** 2).mean() / true)
    found = np.array(ratios)
    spread = np.sqrt(2 / PROJECTIONS)
    assert abs(found.mean() - 1) < 5 * spread / np.sqrt(len(found))
    assert found.std() < 1.1 * spread
    for e in (0.5, 1.0, 1.5):
        bound = np.exp(-PROJECTIONS / 2 * (e**2 / 2 - e**3 / 3))
        # Three standard errors of a share among so many samples.
        slack = 3 * np.sqrt(bound / len(found))
        assert (found > 1 + e).mean() <= bound + slack and (found < 1 - e).mean() <= bound + slack


def test_every_finite_float16_is_read_exactly(tmp_path: Path) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(HEADS, -1, DIM)
    cache = {f"l0.{half}": every for half in "kv"}
    tokens = every.shape[1]
    path = tmp_path / "f16.safetensors"
    save_file({"tokens": np.arange(tokens, dtype=np.int32), **cache}, path)
    form = sketch_form(dataclasses.replace(TINY, layers=1), StoreDtype.FLOAT16, tokens)
    made = parse_sketch(sketch_file(path, KEY), form)
    assert is_recomputed(made, exactly(cache, form.block_tokens))


def test_sketch_of_another_release_is_refused_in_one_line(tmp_path: Path) -> None:
    for content, found in (
        (save(good_sketch()), "none"),
        (save(good_sketch(), {"format": "memgrid.sketch.v3"}), "v3"),
    ):
        with pytest.raises(RefusedError, match=rf"expected format memgrid.sketch.v2, found .*{found}") as refused:
            parse_sketch(content, FORM)
        assert refused.value.reason.code is ReasonCode.BAD_SKETCH and "\n" not in str(refused.value)


def test_numbers_that_overflow_make_a_sketch_that_is_refused(tmp_path: Path) -> None:
    cache = cache_of(np.random.default_rng(7))
    cache["l1.v"][0, 3, 2] = 1e30
    with pytest.raises(RefusedError) as refused:
        sketch_of(cache, tmp_path)
    assert refused.value.reason.code is ReasonCode.NOT_FINITE


def test_recomputed_sketch_may_differ_by_rounding_and_no_more(tmp_path: Path) -> None:
    cache = cache_of(np.random.default_rng(6))
    mine = sketch_of(cache, tmp_path)
    rounded = Sketch(k=np.nextafter(mine.k, np.float32(np.inf)), v=mine.v)
    assert is_recomputed(rounded, mine)
    other = Sketch(k=mine.k, v=mine.v.copy())
    other.v[1, 2, 3] += np.float32(1e-3) * other.v[1, 2, 0]
    assert not is_recomputed(other, mine)


def good_sketch() -> dict[str, np.ndarray]:
    return {half: np.ones((LAYERS, FORM.blocks, 7), dtype=np.float32) for half in "kv"}


def good_content(**changed: np.ndarray) -> bytes:
    return saved(good_sketch() | changed)


def saved(tensors: dict[str, np.ndarray]) -> bytes:
    return bytes(save(tensors, {"format": SKETCH_FORMAT}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ReasonCode.BAD_SKETCH),
        (b"\xff" * 64, ReasonCode.BAD_SKETCH),
        (good_content()[:-1], ReasonCode.BAD_SKETCH),
        (good_content() + b"\0", ReasonCode.BAD_SKETCH),
        (good_content(more=np.ones(1, dtype=np.float32)), ReasonCode.BAD_SKETCH),
        (saved({"k": good_sketch()["k"]}), ReasonCode.BAD_SKETCH),
        (good_content(k=good_sketch()["k"][:, :-1].copy()), ReasonCode.BAD_SKETCH),
        (good_content(k=good_sketch()["k"].astype(np.float16)), ReasonCode.BAD_SKETCH),
        (good_content(k=-good_sketch()["k"]), ReasonCode.BAD_SKETCH),
        (good_content(v=good_sketch()["v"] * np.float32(np.nan)), ReasonCode.NOT_FINITE),
        (good_content(v=good_sketch()["v"] * np.float32(np.inf)), ReasonCode.NOT_FINITE),
        (b"\0" * 10_000_000, ReasonCode.BAD_SKETCH),
    ],
)
def test_sketch_that_is_none_is_refused_with_a_typed_reason(content: bytes, reason: ReasonCode) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_sketch(content, FORM)
    assert refused.value.reason.code is reason
    assert isinstance(refused.value, InvalidError)


def test_good_sketch_passes_as_it_is() -> None:
    parsed = parse_sketch(good_content(), FORM)
    assert np.array_equal(parsed.k, load(good_content())["k"])


def test_projections_without_a_norm_are_infinitely_far_away() -> None:
    nothing = Sketch(k=np.zeros((1, 1, 7), np.float32), v=np.zeros((1, 1, 7), np.float32))
    lie = Sketch(k=nothing.k, v=nothing.v.copy())
    lie.v[..., 1] = 1
    assert set(distances(nothing, nothing).values()) == {0.0}
    assert distances(nothing, lie)["V median"] == np.inf
