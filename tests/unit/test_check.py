"""Honest caches agree and pass; wrong ones are named with the statistic or the reason that gave them away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from memgrid.cube.identity import identity_of_folder
from memgrid.digest import digest_of, digest_of_file, token_bytes
from memgrid.kinds.kind import Difference
from memgrid.kinds.prefill import KV_FORMAT, ModelGeometry
from memgrid.kinds.sketch import Sketch, sketch_content, sketch_file
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.specs import PrefillSpec
from memgrid.units import AccountId, ComputeDtype, LeaseId, Reason, ReasonCode, StoreDtype
from memgrid_coordinator.heavy.check import Comparison, UploadedOutput, check_output, compare
from memgrid_coordinator.policy.quorum import Pair
from memgrid_coordinator.records import ReplicaClaim
from tests.cubes import prefill, write_kv

IDS = [7 * position % 300 for position in range(70)]


def spec_of(model_folder: Path, store_dtype: StoreDtype = StoreDtype.FLOAT32) -> PrefillSpec:
    return PrefillSpec(
        model=identity_of_folder(model_folder).digest,
        tokens=digest_of(token_bytes(IDS)),
        token_count=len(IDS),
        start=0,
        parent=None,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=store_dtype,
    )


@pytest.fixture(scope="module")
def geometry(tiny_model_folder: Path) -> ModelGeometry:
    return identity_of_folder(tiny_model_folder).geometry


@pytest.fixture(scope="module")
def spec(tiny_model_folder: Path) -> PrefillSpec:
    return spec_of(tiny_model_folder)


def computed(path: Path, model_folder: Path, *, ids: list[int] = IDS, dtype: torch.dtype = torch.float32) -> Path:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    write_kv(path, prefill(model, ids), ids, 0, StoreDtype.FLOAT32)
    return path


def claim(path: Path, spec: PrefillSpec, name: str, dtype: ComputeDtype = ComputeDtype.FLOAT32) -> ReplicaClaim:
    return ReplicaClaim(
        lease_id=LeaseId(name),
        account_id=AccountId(f"account of {name}"),
        output_digest=digest_of_file(path),
        sketch=sketch_file(path, spec.key),
        compute_dtype=dtype,
    )


def compared(claims: list[ReplicaClaim], spec: PrefillSpec, geometry: ModelGeometry) -> dict[Pair, Difference]:
    return compare(Comparison(claims=tuple(claims), spec=spec.to_bytes(), geometry=geometry, tolerances=BUILT_IN))


def checked(path: Path, spec: PrefillSpec, sketch: bytes, geometry: ModelGeometry) -> Reason | None:
    """What the coordinator says of an uploaded cache."""
    tokens = path.with_name("tokens.bin")
    tokens.write_bytes(token_bytes(IDS))
    uploaded = UploadedOutput(
        spec=spec.to_bytes(),
        files={"kv.safetensors": path},
        inputs={"tokens.bin": tokens},
        sketch=sketch,
        geometry=geometry,
    )
    return check_output(uploaded)


def pair(one: str, other: str) -> frozenset[LeaseId]:
    return frozenset((LeaseId(one), LeaseId(other)))


def test_honest_reports_of_different_dtypes_agree_and_another_model_does_not(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry
) -> None:
    claims = [
        claim(computed(tmp_path / "a", tiny_model_folder), spec, "float32"),
        claim(
            computed(tmp_path / "b", tiny_model_folder, dtype=torch.bfloat16), spec, "bfloat16", ComputeDtype.BFLOAT16
        ),
        claim(computed(tmp_path / "c", other_model_folder), spec, "cheat"),
    ]
    found = compared(claims, spec, geometry)
    honest = found[pair("float32", "bfloat16")]
    assert honest.exceeded is None
    assert 0 < honest.distance <= 1
    for name in ("float32", "bfloat16"):
        cheat = found[pair(name, "cheat")]
        assert cheat.distance > 10
        assert cheat.exceeded is not None
        assert "allowed" in cheat.exceeded
    assert len(found) == 3


def test_bfloat16_that_calls_itself_float32_is_found_out(
    tmp_path: Path, tiny_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry
) -> None:
    claims = [
        claim(computed(tmp_path / "a", tiny_model_folder), spec, "honest"),
        claim(computed(tmp_path / "b", tiny_model_folder, dtype=torch.bfloat16), spec, "liar"),
    ]
    assert compared(claims, spec, geometry)[pair("honest", "liar")].exceeded is not None


def test_equal_outputs_need_no_comparison(
    tmp_path: Path, tiny_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry
) -> None:
    path = computed(tmp_path / "a", tiny_model_folder)
    assert compared([claim(path, spec, "one"), claim(path, spec, "two")], spec, geometry) == {}


@pytest.mark.parametrize(
    "fault",
    [{"sketch": b"nonsense"}, {"compute_dtype": ComputeDtype.AUTO}],
    ids=["no sketch", "no dtype"],
)
def test_what_cannot_be_compared_differs_from_everything(
    tmp_path: Path, tiny_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry, fault: dict[str, Any]
) -> None:
    path = computed(tmp_path / "a", tiny_model_folder)
    good = claim(path, spec, "good")
    bad = replace(claim(path, spec, "bad"), output_digest=digest_of(b"other"), **fault)
    found = compared([good, bad], spec, geometry)[pair("good", "bad")]
    assert found.distance == float("inf")
    assert found.exceeded


def test_the_reported_output_passes(
    tmp_path: Path, tiny_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry
) -> None:
    path = computed(tmp_path / "kv.safetensors", tiny_model_folder)
    assert checked(path, spec, sketch_file(path, spec.key), geometry) is None


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["l1.v"][0, 3, 2] = float("nan")


def with_a_token_less(tensors: dict[str, torch.Tensor]) -> None:
    tensors["l1.k"] = tensors["l1.k"][:, 1:].contiguous()


def with_another_token(tensors: dict[str, torch.Tensor]) -> None:
    tensors["tokens"][5] += 1


def with_another_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["l0.v"][1, 69, 15] += 0.01


def without_a_layer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["l1.k"], tensors["l1.v"]


def halved(tensors: dict[str, torch.Tensor]) -> None:
    tensors["l0.k"] = tensors["l0.k"].half()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (with_nan, ReasonCode.NOT_FINITE),
        (with_a_token_less, ReasonCode.WRONG_SHAPE),
        (with_another_token, ReasonCode.WRONG_OUTPUTS),
        (with_another_number, ReasonCode.SKETCH_MISMATCH),
        (without_a_layer, ReasonCode.WRONG_SHAPE),
        (halved, ReasonCode.WRONG_SHAPE),
    ],
)
def test_an_output_that_is_not_the_reported_one_is_refused_with_its_reason(
    tmp_path: Path,
    tiny_model_folder: Path,
    spec: PrefillSpec,
    geometry: ModelGeometry,
    change: Callable[[dict[str, torch.Tensor]], None],
    code: ReasonCode,
) -> None:
    path = computed(tmp_path / "kv.safetensors", tiny_model_folder)
    reported = sketch_file(path, spec.key)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": KV_FORMAT})
    reason = checked(path, spec, reported, geometry)
    assert reason is not None
    assert reason.code is code
    assert reason.text


def test_a_truncated_upload_is_refused(
    tmp_path: Path, tiny_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry
) -> None:
    path = computed(tmp_path / "kv.safetensors", tiny_model_folder)
    reported = sketch_file(path, spec.key)
    path.write_bytes(path.read_bytes()[:-7])
    reason = checked(path, spec, reported, geometry)
    assert reason is not None
    assert reason.code is ReasonCode.WRONG_SHAPE


def test_the_sketch_of_another_unit_does_not_fit(
    tmp_path: Path, tiny_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry
) -> None:
    path = computed(tmp_path / "kv.safetensors", tiny_model_folder)
    elsewhere = replace(spec, store_dtype=StoreDtype.FLOAT16).key
    reason = checked(path, spec, sketch_file(path, elsewhere), geometry)
    assert reason is not None
    assert reason.code is ReasonCode.SKETCH_MISMATCH


def test_a_sketch_with_one_number_changed_does_not_fit(
    tmp_path: Path, tiny_model_folder: Path, spec: PrefillSpec, geometry: ModelGeometry
) -> None:
    path = computed(tmp_path / "kv.safetensors", tiny_model_folder)
    sketch = {name: np.array(tensor) for name, tensor in load(sketch_file(path, spec.key)).items()}
    sketch["v"][1, 0, 3] *= 1.01
    changed = sketch_content(Sketch(k=sketch["k"], v=sketch["v"]))
    reason = checked(path, spec, changed, geometry)
    assert reason is not None
    assert reason.code is ReasonCode.SKETCH_MISMATCH
