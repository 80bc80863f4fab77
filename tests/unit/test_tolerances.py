"""Limits let honest differences through and stop wrong models; the table is ordered as arithmetic is, and travels."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import combinations_with_replacement, pairwise
from typing import Any

import pytest

from memgrid.digest import canonical_json
from memgrid.errors import InvalidError
from memgrid.kinds.audit import Zone, judge
from memgrid.kinds.built_in_rows import CHECKS, SKETCH_STATISTICS
from memgrid.kinds.kind import difference
from memgrid.kinds.prefill_limits import sketch_limits
from memgrid.kinds.tolerances import BUILT_IN, Tolerances
from memgrid.units import ComputeDtype, StoreDtype

F32, F16, B16 = ComputeDtype.FLOAT32, ComputeDtype.FLOAT16, ComputeDtype.BFLOAT16
NOTHING = dict.fromkeys(SKETCH_STATISTICS, 0.0)


def row(*values: float) -> dict[str, float]:
    return dict(zip(SKETCH_STATISTICS, values, strict=True))


def limits(one: ComputeDtype, other: ComputeDtype, store: StoreDtype, tokens: int) -> dict[str, float]:
    return sketch_limits(BUILT_IN, one, other, store, max(1, tokens // 16))


# As measured on SmolLM2-135M-Instruct with 128 tokens and more, stored in bfloat16: the largest of the honest, the
# smallest of the cheat.
HONEST = {
    (F32, F32): row(3.6e-5, 6.2e-5, 1.5e-4, 1.4e-4, 6.1e-5, 6.1e-6, 5.5e-4, 4.1e-4),
    (F32, F16): row(2.2e-3, 3.3e-3, 3.0e-3, 5.4e-3, 1.7e-3, 1.9e-3, 5.5e-3, 1.7e-2),
    (F32, B16): row(1.0e-2, 2.0e-2, 2.0e-2, 4.2e-2, 4.1e-3, 3.2e-3, 5.3e-2, 0.15),
    (B16, B16): row(9.0e-3, 1.8e-2, 1.6e-2, 3.6e-2, 3.6e-3, 2.9e-3, 5.2e-2, 0.13),
}
INT8 = row(1.4e-2, 3.3e-2, 2.2e-2, 4.8e-2, 3.1e-3, 8.3e-3, 3.0e-2, 6.8e-2)


@pytest.mark.parametrize("pair", list(HONEST))
def test_measured_honest_differences_pass(pair: tuple[ComputeDtype, ComputeDtype]) -> None:
    assert difference(HONEST[pair], limits(*pair, StoreDtype.BFLOAT16, 256)).exceeded is None


@pytest.mark.parametrize("pair", list(HONEST))
def test_int8_weights_do_not_pass_in_any_class(pair: tuple[ComputeDtype, ComputeDtype]) -> None:
    assert difference(INT8, limits(*pair, StoreDtype.BFLOAT16, 256)).exceeded is not None


def test_int8_weights_are_ten_times_above_the_float32_limits() -> None:
    allowed = limits(F32, F32, StoreDtype.BFLOAT16, 256)
    assert all(INT8[name] > 10 * allowed[name] for name in ("V median", "K median"))


def test_order_of_the_two_does_not_matter() -> None:
    for a, b in combinations_with_replacement((F32, F16, B16), 2):
        assert limits(a, b, StoreDtype.FLOAT16, 64) == limits(b, a, StoreDtype.FLOAT16, 64)


@pytest.mark.parametrize("check", CHECKS)
def test_coarser_arithmetic_is_allowed_no_less(check: str) -> None:
    """In every check; and those that set two hosts side by side know every pair."""
    stores = list(StoreDtype) if check.startswith("prefill") else [None]
    pairs = [(F32, F32), (F32, F16), (F32, B16)]
    if check.endswith("sketch"):
        pairs += [(F16, F16), (F16, B16), (B16, B16)]
    for store in stores:
        rows = [BUILT_IN.row(check, *pair, store) for pair in pairs]
        assert all(set(row) == set(CHECKS[check]) for row in rows)
        for fine, coarse in pairwise(rows[:3]):
            assert all(fine[name] <= coarse[name] for name in fine)


def test_shorter_chunks_are_allowed_more_but_never_without_bound() -> None:
    last = limits(B16, B16, StoreDtype.BFLOAT16, 4096)
    for tokens in (512, 256, 100, 16, 1):
        wider = limits(B16, B16, StoreDtype.BFLOAT16, tokens)
        assert all(wider[name] >= last[name] for name in last)
        last = wider
    assert last["V median"] < 0.05 and last["V worst block"] < 1


def test_class_that_is_not_settled_has_no_tolerance() -> None:
    with pytest.raises(InvalidError, match="a report names the dtype"):
        limits(ComputeDtype.AUTO, F32, StoreDtype.BFLOAT16, 256)


@pytest.mark.parametrize("name", SKETCH_STATISTICS)
def test_each_statistic_alone_can_reject_and_is_named(name: str) -> None:
    allowed = limits(F32, F32, StoreDtype.BFLOAT16, 256)
    for value in (allowed[name] * 1.01, float("nan"), float("inf")):
        told = difference({**NOTHING, name: value}, allowed)
        assert told.exceeded is not None and told.exceeded.startswith(f"{name} ")
        assert told.distance > 1
    assert difference(NOTHING, allowed).exceeded is None


@pytest.mark.parametrize(
    ("value", "zone"),
    [(0.0, Zone.PASS), (1.0, Zone.PASS), (1.01, Zone.SUSPICIOUS), (2.0, Zone.SUSPICIOUS), (2.01, Zone.FAULT),
     (float("nan"), Zone.FAULT), (float("inf"), Zone.FAULT)],
)  # fmt: skip
def test_the_worst_statistic_decides_the_zone_and_is_told(value: float, zone: Zone) -> None:
    found = judge({"small": 1e-3, "other": value}, {"small": 0.5, "other": 1.0, "more": 1.0}, where="here", flops=7)
    assert found.zone is zone
    assert found.limits == {"small": 0.5, "other": 1.0}
    assert found.in_words().startswith("other" if value else "small") and found.in_words().endswith(", at here")


def test_a_broken_rule_is_a_fault_whatever_the_numbers_say() -> None:
    found = judge({"one": 0.0}, {"one": 1.0}, broken_rule="tokens are missing", flops=0)
    assert (found.zone, found.in_words()) == (Zone.FAULT, "tokens are missing")


def test_where_nothing_is_allowed_nothing_passes() -> None:
    assert judge({"items": 0.0}, {"items": 0.0}, flops=0).zone is Zone.PASS
    found = judge({"items": 1e-9, "other": 5.0}, {"items": 0.0, "other": 1.0}, flops=0)
    assert found.worst == ("items", float("inf"))


def test_calibrated_rows_stand_before_the_built_in_ones() -> None:
    key = "prefill.layer0/bfloat16+float32/bfloat16"
    calibrated = Tolerances(
        origin="calibrated", rows={key: {name: limit / 2 for name, limit in BUILT_IN.rows[key].items()}}
    )
    both = Tolerances.from_bytes(calibrated.over(BUILT_IN).to_bytes())
    assert both.origin == "calibrated"
    assert both.row("prefill.layer0", B16, F32, StoreDtype.BFLOAT16) == calibrated.rows[key]
    assert both.row("study.replay", B16, F32) == BUILT_IN.row("study.replay", B16, F32)
    assert pickle.loads(pickle.dumps(both)) == both


def spoiled(change: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(BUILT_IN.to_bytes())
    change(value)
    return json.dumps(value).encode()


KEY = "train.segment/float16+float32"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "JSONDecodeError"),
        (b"[]", "TypeError"),
        (b"[" * 100_000, "Recursion"),
        (b" " * 1_000_000, "at most"),
        (canonical_json({"format": "memgrid.tolerances.v2", "origin": "", "rows": {}}), "expected format"),
        (spoiled(lambda value: value.update(origin=7)), "origin"),
        (spoiled(lambda value: value.update(origin="x" * 1000)), "origin"),
        (spoiled(lambda value: value.update(rows=[])), "rows"),
        (spoiled(lambda value: value["rows"].update(other={})), "other: no such row"),
        (spoiled(lambda value: value["rows"][KEY].pop("loss")), "expected relative L2"),
        (spoiled(lambda value: value["rows"][KEY].update(more=1)), "expected relative L2"),
        (spoiled(lambda value: value["rows"].update({KEY: 7})), "expected relative L2"),
        *(
            (spoiled(lambda value, bad=bad: value["rows"][KEY].update(loss=bad)), "loss: expected a number")
            for bad in (-1, 1e7, float("nan"), float("inf"), "1", None, True)
        ),
    ],
)
def test_what_is_no_table_of_tolerances_is_refused_in_one_line(content: bytes, words: str) -> None:
    with pytest.raises(InvalidError, match=words) as refused:
        Tolerances.from_bytes(content)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
