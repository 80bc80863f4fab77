"""A handed-in KV file is accepted for its unit only in exactly the form asked for; the reason is typed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from memgrid.digest import digest_of, token_bytes
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import KV_FORMAT, ModelGeometry, check_kv_file, flops, read_kv
from memgrid.kinds.refusal import RefusedError
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, ReasonCode, StoreDtype

GEOMETRY = ModelGeometry(
    layers=2, heads=4, kv_heads=2, head_dim=8, hidden=32, vocab=100, parameters=20_000, tied_embeddings=True
)
IDS = [5, 3, 99, 3, 0]
SPEC = PrefillSpec(
    model=digest_of(b"model"),
    tokens=digest_of(token_bytes(IDS)),
    token_count=len(IDS),
    start=0,
    parent=None,
    compute_dtype=ComputeDtype.AUTO,
    store_dtype=StoreDtype.FLOAT16,
)
FORMAT = {"format": KV_FORMAT}


def good() -> dict[str, np.ndarray]:
    values = np.arange(2 * 5 * 8, dtype=np.float16).reshape(2, 5, 8)
    halves = {f"l{layer}.{half}": values + layer for layer in range(2) for half in "kv"}
    return {"tokens": np.array(IDS, dtype=np.int32), **halves}


def check(folder: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = FORMAT) -> None:
    save_file(tensors, folder / "kv.safetensors", metadata)
    check_kv_file(folder / "kv.safetensors", SPEC, IDS, GEOMETRY)


def test_file_as_asked_for_passes_and_is_read_without_loss(tmp_path: Path) -> None:
    check(tmp_path, good())
    read = read_kv(tmp_path / "kv.safetensors")
    assert read.tokens.tolist() == IDS
    assert read.dtype is StoreDtype.FLOAT16
    assert np.array_equal(read.k[1], good()["l1.k"]) and np.array_equal(read.v[0], good()["l0.v"])


def with_value(value: float) -> dict[str, np.ndarray]:
    tensors = good()
    tensors["l1.v"][1, 4, 7] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        (good() | {"l0.k": good()["l0.k"][:, :4].copy()}, FORMAT, ReasonCode.WRONG_SHAPE),
        (good() | {"l0.k": good()["l0.k"].reshape(5, 2, 8)}, FORMAT, ReasonCode.WRONG_SHAPE),
        (good() | {"l0.k": good()["l0.k"].astype(np.float32)}, FORMAT, ReasonCode.WRONG_SHAPE),
        (good() | {"l0.k": good()["l0.k"].view(np.int16)}, FORMAT, ReasonCode.WRONG_SHAPE),
        (good() | {"l2.k": good()["l0.k"]}, FORMAT, ReasonCode.WRONG_SHAPE),
        ({name: values for name, values in good().items() if name != "l1.v"}, FORMAT, ReasonCode.WRONG_SHAPE),
        (good(), {"format": "pt"}, ReasonCode.WRONG_SHAPE),
        (good(), FORMAT | {"made_by": "me"}, ReasonCode.WRONG_SHAPE),
        (good() | {"tokens": np.array([5, 3, 98, 3, 0], dtype=np.int32)}, FORMAT, ReasonCode.WRONG_OUTPUTS),
        (good() | {"tokens": np.array(IDS, dtype=np.int64)}, FORMAT, ReasonCode.WRONG_SHAPE),
        (with_value(np.nan), FORMAT, ReasonCode.NOT_FINITE),
        (with_value(-np.inf), FORMAT, ReasonCode.NOT_FINITE),
        (good() | {"l0.k": np.zeros((2, 5, 1_000_000), np.float16)}, FORMAT, ReasonCode.UPLOAD_TOO_LARGE),
    ],
)
def test_any_other_form_is_refused_with_its_reason(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str], reason: ReasonCode
) -> None:
    with pytest.raises(RefusedError) as refused:
        check(tmp_path, tensors, metadata)
    assert refused.value.reason.code is reason


@pytest.mark.parametrize("cut_bytes", [1, 500, 10_000])
def test_truncated_file_is_refused(tmp_path: Path, cut_bytes: int) -> None:
    check(tmp_path, good())
    path = tmp_path / "kv.safetensors"
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    with pytest.raises(RefusedError) as refused:
        check_kv_file(path, SPEC, IDS, GEOMETRY)
    assert refused.value.reason.code is ReasonCode.WRONG_SHAPE


def test_refusal_keeps_its_reason_from_process_to_process() -> None:
    refused = RefusedError(ReasonCode.NOT_FINITE, "l0.k contains NaN")
    again = pickle.loads(pickle.dumps(refused))
    assert again.reason == refused.reason and str(again) == str(refused)


def test_other_file_is_no_cache(tmp_path: Path) -> None:
    save_file({"weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidError, match=r"not a memgrid\.kv\.v1 file"):
        read_kv(tmp_path / "model.safetensors")


def test_flops_of_chunks_add_up_to_those_of_the_whole() -> None:
    whole = flops(GEOMETRY, 1000, 0)
    assert flops(GEOMETRY, 300, 0) + flops(GEOMETRY, 700, 300) == whole
    assert flops(GEOMETRY, 700, 300) > flops(GEOMETRY, 700, 0)


def test_flops_are_what_pytorch_counts(tiny_model_folder: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    from memgrid.cube.identity import identity_of_folder

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.model(input_ids=torch.arange(64).unsqueeze(0))
    ours = flops(identity_of_folder(tiny_model_folder).geometry, 64, 0)
    # Eager attention also multiplies what the mask then throws away: at most twice the pairs that count.
    assert 0.85 * counter.get_total_flops() < ours <= counter.get_total_flops()
