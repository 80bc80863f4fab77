"""A prefill unit's arithmetic and its output file, on a real (tiny) model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open
from transformers import AutoModelForCausalLM, DynamicCache

from memgrid.clock import SystemClock
from memgrid.digest import digest_of, token_bytes
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry, check_kv_file
from memgrid.kinds.sketch import parse_sketch, sketch_form
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, StoreDtype, UnitKey
from memgrid_volunteer.kinds.job import Job
from memgrid_volunteer.kinds.prefill import Prefill
from memgrid_volunteer.numerics import find_devices, make_deterministic

GEOMETRY = ModelGeometry(
    layers=2, heads=4, kv_heads=2, head_dim=16, hidden=64, vocab=384, parameters=1, tied_embeddings=True
)
TOKENS = [int(token) for token in np.random.default_rng(7).integers(3, 300, size=96)]

MakeUnit = Callable[..., Job]


@pytest.fixture(autouse=True)
def numerics() -> None:
    make_deterministic()


@pytest.fixture
def runner() -> Prefill:
    return Prefill(find_devices()[-1], SystemClock())


@pytest.fixture
def make_unit(tmp_path: Path, tiny_model_folder: Path) -> MakeUnit:
    """Writes a unit's folder as the supervisor does."""

    def make(
        name: str,
        tokens: list[int],
        *,
        start: int = 0,
        past: tuple[Path, ...] = (),
        store: StoreDtype = StoreDtype.FLOAT32,
        compute: ComputeDtype = ComputeDtype.AUTO,
    ) -> Job:
        unit_dir, out_dir = tmp_path / name / "in", tmp_path / name / "out"
        (unit_dir / "past").mkdir(parents=True)
        out_dir.mkdir()
        (unit_dir / "spec.json").write_bytes(spec_of(tokens, start, store, compute).to_bytes())
        (unit_dir / "tokens.bin").write_bytes(token_bytes(tokens))
        for number, file in enumerate(past):
            (unit_dir / "past" / f"{number:04}.safetensors").hardlink_to(file)
        return Job(kind="prefill", unit_dir=unit_dir, model_dir=tiny_model_folder, out_dir=out_dir)

    return make


def spec_of(tokens: list[int], start: int, store: StoreDtype, compute: ComputeDtype) -> PrefillSpec:
    return PrefillSpec(
        model=digest_of(b"tiny"),
        tokens=digest_of(token_bytes(tokens)),
        token_count=len(tokens),
        start=start,
        parent=UnitKey("0" * 64) if start else None,
        compute_dtype=compute,
        store_dtype=store,
    )


def test_the_cache_is_the_one_that_the_whole_model_makes(
    runner: Prefill, make_unit: MakeUnit, tiny_model_folder: Path
) -> None:
    job = make_unit("one", TOKENS)
    runner.run(job)
    written = load_file(job.out_dir / "kv.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    cache = DynamicCache()
    model(input_ids=torch.tensor([TOKENS]), past_key_values=cache)
    for layer, filled in enumerate(cache.layers):
        torch.testing.assert_close(written[f"l{layer}.k"], filled.keys[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(written[f"l{layer}.v"], filled.values[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("store", StoreDtype)
def test_the_output_passes_the_coordinators_check(runner: Prefill, make_unit: MakeUnit, store: StoreDtype) -> None:
    job = make_unit("one", TOKENS, store=store)
    facts = runner.run(job)
    spec = spec_of(TOKENS, 0, store, ComputeDtype.AUTO)
    check_kv_file(job.out_dir / "kv.safetensors", spec, TOKENS, GEOMETRY)
    parse_sketch((job.out_dir / "sketch.safetensors").read_bytes(), sketch_form(GEOMETRY, store, 96))
    with safe_open(job.out_dir / "kv.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "memgrid.kv.v1"}
    assert (facts.tokens, facts.device_kind, facts.compute_dtype) == (96, "cpu", ComputeDtype.FLOAT32)
    assert facts.numerics_class.startswith("cpu-") and facts.compute_s > 0


def test_chained_chunks_are_the_same_as_one_reading(runner: Prefill, make_unit: MakeUnit) -> None:
    whole = make_unit("whole", TOKENS)
    runner.run(whole)
    past: tuple[Path, ...] = ()
    for start in (0, 40, 56):
        end = {0: 40, 40: 56, 56: 96}[start]
        job = make_unit(f"from-{start}", TOKENS[start:end], start=start, past=past)
        runner.run(job)
        past += (job.out_dir / "kv.safetensors",)
    expected = load_file(whole.out_dir / "kv.safetensors")
    chunks = [load_file(file) for file in past]
    for name in ("l0.k", "l0.v", "l1.k", "l1.v"):
        joined = torch.cat([chunk[name] for chunk in chunks], dim=1)
        torch.testing.assert_close(joined, expected[name], rtol=0, atol=1e-5)
    assert torch.cat([chunk["tokens"] for chunk in chunks]).tolist() == TOKENS


def test_the_same_unit_gives_the_same_bytes(runner: Prefill, make_unit: MakeUnit) -> None:
    first, second = make_unit("first", TOKENS), make_unit("second", TOKENS)
    runner.run(first)
    Prefill(find_devices()[-1], SystemClock()).run(second)
    for name in ("kv.safetensors", "sketch.safetensors"):
        assert (first.out_dir / name).read_bytes() == (second.out_dir / name).read_bytes()


def test_the_past_matters(runner: Prefill, make_unit: MakeUnit) -> None:
    first = make_unit("first", TOKENS[:32])
    other = make_unit("other", TOKENS[32:64])
    runner.run(first)
    runner.run(other)
    results = []
    for name, before in (("right", first), ("wrong", other)):
        job = make_unit(name, TOKENS[64:], start=32, past=(before.out_dir / "kv.safetensors",))
        runner.run(job)
        results.append(load_file(job.out_dir / "kv.safetensors")["l1.v"])
    assert (results[0] - results[1]).norm() / results[0].norm() > 0.05


def test_bfloat16_compute_is_close_and_said_so(runner: Prefill, make_unit: MakeUnit) -> None:
    exact, rough = make_unit("exact", TOKENS), make_unit("rough", TOKENS, compute=ComputeDtype.BFLOAT16)
    runner.run(exact)
    assert runner.run(rough).compute_dtype is ComputeDtype.BFLOAT16
    a, b = (load_file(job.out_dir / "kv.safetensors")["l1.v"] for job in (exact, rough))
    assert 0 < (a - b).norm() / a.norm() < 0.1


def test_inputs_that_are_not_the_specs_are_refused(runner: Prefill, make_unit: MakeUnit) -> None:
    job = make_unit("one", TOKENS)
    (job.unit_dir / "tokens.bin").write_bytes(token_bytes(TOKENS[1:]))
    with pytest.raises(InvalidError, match=r"tokens\.bin is not what"):
        runner.run(job)


def test_a_past_of_the_wrong_length_is_refused(runner: Prefill, make_unit: MakeUnit) -> None:
    first = make_unit("first", TOKENS[:32])
    runner.run(first)
    past = (first.out_dir / "kv.safetensors",)
    with pytest.raises(InvalidError, match="starts at position 40, but its past holds 32"):
        runner.run(make_unit("short", TOKENS[32:64], start=40, past=past))
    with pytest.raises(InvalidError, match="no past came with it"):
        runner.run(make_unit("none", TOKENS[32:64], start=40))


@pytest.mark.parametrize("start", [0, 48])
def test_a_machine_that_errs_once_does_not_report(
    make_unit: MakeUnit, tiny_model_folder: Path, tmp_path: Path, start: int
) -> None:
    """In the first pass over all tokens one layer comes out wrong; the second look at a window sees it."""
    past: tuple[Path, ...] = ()
    if start:
        before = make_unit("before", TOKENS[:start])
        Prefill(find_devices()[-1], SystemClock()).run(before)
        past = (before.out_dir / "kv.safetensors",)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval().base_model
    model.layers[0].register_forward_hook(
        lambda module, given, made: made * 1.7 + 1.0 if made.shape[1] == 96 - start else None
    )
    flaky = Prefill(find_devices()[-1], SystemClock(), load=lambda *_: model)
    job = make_unit("flaky", TOKENS[start:], start=start, past=past)
    with pytest.raises(ArithmeticError, match=r"does not compute the same twice: .* at "):
        flaky.run(job)
    assert not (job.out_dir / "sketch.safetensors").exists()
