"""Disputes are narrowed to the first piece that differs, and the arbiter says of it who is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of, digest_of_file
from memgrid.distill.audit import audit
from memgrid.distill.model import load_model
from memgrid.distill.prefill import Pair
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.kind import Replica
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import KV_FILE
from memgrid.kinds.prefill_kind import PrefillKind
from memgrid.kinds.shard import SHARD_FILE, write_shard
from memgrid.kinds.sketch import Sketch, first_difference, sketch_file, sketch_form
from memgrid.kinds.study import StudyKind, sketch_shard
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.kinds.train import TrainKind, output_names, segment_files
from memgrid.units import ComputeDtype, Output
from tests.kv_cheats import CPU, KvUnit, claim, honest, make_kv_unit, one_token_changed, with_int8_weights
from tests.models import make_tiny_model
from tests.studies import Studied, make_studied
from tests.train_cheats import compute, make_unit, poisoned_last_segment, write_outputs
from tests.training import PREFIX

NO_DRAW = bytes(32)
FLOAT32, BFLOAT16 = ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16
TOKENS = 640
IDS = [(7 * place + place * place // 5) % 300 for place in range(TOKENS)]


@given(
    layers=st.integers(1, 5),
    blocks=st.integers(1, 40),
    data=st.data(),
    half=st.sampled_from("kv"),
    seed=st.integers(0, 99),
)
def test_the_first_block_and_its_earliest_layer_are_found(
    layers: int, blocks: int, data: st.DataObject, half: str, seed: int
) -> None:
    """Whatever follows differs too, as it does where each block is computed from those before."""
    block, layer = data.draw(st.integers(0, blocks - 1)), data.draw(st.integers(0, layers - 1))
    rng = np.random.default_rng(seed)
    shape = (layers, blocks, 7)
    one = Sketch(k=np.abs(rng.normal(5, 1, shape)).astype("f4"), v=np.abs(rng.normal(5, 1, shape)).astype("f4"))
    changed = {"k": one.k * np.float32(1 + 1e-4), "v": one.v * np.float32(1 + 1e-4)}
    changed[half][layer:, block] *= 1.5
    changed[half][:, block + 1 :] *= 1.3
    other = Sketch(k=changed["k"], v=changed["v"])
    assert first_difference(one, other, [[0.01, 0.1], [0.01, 0.1]]) == (block, layer)
    assert first_difference(one, one, [[0.01, 0.1], [0.01, 0.1]]) is None
    within = Sketch(k=one.k.copy(), v=one.v.copy())
    within.k[layer, block] *= 1.001
    assert first_difference(one, within, [[0.01, 0.1], [0.01, 0.1]]) == (block, layer)


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> KvUnit:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), layers=4)
    model = load_model(folder, torch.float32, CPU).base_model
    return make_kv_unit(folder, model, tmp_path_factory.mktemp("unit"), IDS)


def answer(unit: KvUnit, pairs: list[Pair], where: Path) -> tuple[dict[str, Path], Replica]:
    files = claim(unit, pairs, where)
    return files, Replica(sketch=sketch_file(files[KV_FILE], unit.spec.key), compute_dtype=FLOAT32)


def zone(unit: Any, files: Mapping[str, Path], part: Part) -> Zone:
    """What the arbiter says of a piece of an answer."""
    return found(unit, files, part).zone


def found(unit: Any, files: Mapping[str, Path], part: Part) -> Audit:
    return audit(
        unit.spec,
        model_folder=unit.folder,
        inputs=unit.inputs,
        files=files,
        compute_dtype=FLOAT32,
        draw=NO_DRAW,
        tolerances=BUILT_IN,
        part=part,
    )


def geometry_of(unit: KvUnit) -> object:
    from memgrid.distill.train_inputs import geometry_of_model

    return geometry_of_model(load_model(unit.folder, torch.float32, CPU))


@pytest.mark.parametrize("cheat", ["a token", "weights", "a layer from the middle on"])
def test_a_disputed_cache_is_decided_by_one_block(unit: KvUnit, cheat: str, tmp_path: Path) -> None:
    honest_pairs = honest(unit)
    if cheat == "a token":
        pairs, first = one_token_changed(unit), TOKENS // 2 + 1
    elif cheat == "weights":
        pairs, first = honest(unit, model=with_int8_weights(unit.model)), 0
    else:
        first = 400
        pairs = [(k.clone(), v.clone()) for k, v in honest_pairs]
        for half in pairs[2]:
            half[:, first:] = half[:, first - 240 : first].clone()
    good, good_sketch = answer(unit, honest_pairs, tmp_path / "good")
    bad, bad_sketch = answer(unit, pairs, tmp_path / "bad")
    geometry = geometry_of(unit)
    part = PrefillKind().narrow(unit.spec, good_sketch, bad_sketch, geometry, BUILT_IN)
    form = sketch_form(geometry, unit.spec.store_dtype, TOKENS)
    assert part is not None
    assert part.pieces[0] == first // form.block_tokens * form.block_tokens
    assert len(part.pieces) == form.block_tokens
    assert part.layer == {"a token": 0, "weights": 0, "a layer from the middle on": 2}[cheat]
    assert zone(unit, good, part) is Zone.PASS
    assert zone(unit, bad, part) is Zone.FAULT


def test_equal_caches_leave_nothing_to_narrow(unit: KvUnit, tmp_path: Path) -> None:
    _, sketch = answer(unit, honest(unit), tmp_path)
    assert PrefillKind().narrow(unit.spec, sketch, sketch, geometry_of(unit), BUILT_IN) is None


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Studied:
    return make_studied(tmp_path_factory.mktemp("study") / "tiny")


def test_disputed_conversations_are_read_again(studied: Studied, tmp_path: Path) -> None:
    questions = studied.honest.question_ids.copy()
    offsets = studied.honest.question_offsets
    for index in (3, 11):
        place = offsets[index + 1] - 1
        questions[place] = next(
            token for token in range(3, 384) if token not in (*studied.frame.stops, *studied.frame.question_stops,
                                                              questions[place])
        )  # fmt: skip
    shards = {"good": studied.honest, "bad": replace(studied.honest, question_ids=questions)}
    answers, replicas = {}, {}
    for name, shard in shards.items():
        write_shard(tmp_path / name, shard)
        answers[name] = {SHARD_FILE: tmp_path / name}
        replicas[name] = Replica(sketch=sketch_shard(shard), compute_dtype=FLOAT32)
    part = StudyKind().narrow(studied.spec, replicas["good"], replicas["bad"], studied.geometry, BUILT_IN)
    assert part == Part(pieces=(3, 11))
    assert zone(studied, answers["good"], part) is Zone.PASS
    bad = found(studied, answers["bad"], part)
    assert bad.zone is Zone.FAULT and bad.where in ("conversation 3", "conversation 11")
    same = StudyKind().narrow(studied.spec, replicas["good"], replicas["good"], studied.geometry, BUILT_IN)
    assert same is None


def test_a_disputed_training_is_decided_by_the_segment_in_which_the_chains_part(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    trained = make_unit(make_tiny_model(tmp_path_factory.mktemp("tiny")), tmp_path / "unit", PREFIX)
    states, trace = compute(trained)
    both = {
        "good": write_outputs(tmp_path / "good", states, trace),
        "bad": write_outputs(tmp_path / "bad", poisoned_last_segment(trained, list(states)), trace),
    }
    replicas = {
        name: Replica(
            sketch=b"",
            compute_dtype=FLOAT32,
            numerics_class="cpu-x86_64-avx2/torch-2.13",
            outputs=tuple(
                Output(name=file, digest=digest_of_file(files[file]), size_bytes=files[file].stat().st_size)
                for file in output_names(trained.spec)
            ),
        )
        for name, files in both.items()
    }
    from memgrid.distill.train_inputs import geometry_of_model

    geometry, kind = geometry_of_model(trained.model), TrainKind()
    part = kind.narrow(trained.spec, replicas["good"], replicas["bad"], geometry, BUILT_IN)
    assert part == Part(pieces=(3,))
    assert zone(trained, both["good"], part) is Zone.PASS
    assert zone(trained, both["bad"], part) is Zone.FAULT
    for changed in ({"compute_dtype": BFLOAT16}, {"numerics_class": "cpu-aarch64-neon/torch-2.13"}):
        unlike = replace(replicas["bad"], **changed)
        assert kind.narrow(trained.spec, replicas["good"], unlike, geometry, BUILT_IN) is None, "any step does"


def test_of_a_disputed_training_the_ends_of_that_segment_are_fetched(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    spec = make_unit(make_tiny_model(tmp_path_factory.mktemp("tiny")), tmp_path / "unit", PREFIX).spec
    outputs = [Output(name=name, digest=digest_of(name.encode()), size_bytes=1) for name in output_names(spec)]
    wanted = TrainKind().wanted(spec, outputs, NO_DRAW, Part(pieces=(1,)))
    names = {output.name for output in wanted}
    assert set(segment_files(spec, 1)) <= names and len(names) < len(outputs)
