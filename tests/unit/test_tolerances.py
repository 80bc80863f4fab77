"""Limits let honest differences through and stop wrong models; the table is ordered as arithmetic is."""

from __future__ import annotations

from dataclasses import astuple, fields, replace
from itertools import combinations_with_replacement

import pytest

from memgrid.errors import InvalidError
from memgrid.kinds.sketch import Distances
from memgrid.kinds.tolerances import exceeded, limits
from memgrid.units import ComputeDtype, StoreDtype

F32, F16, B16 = ComputeDtype.FLOAT32, ComputeDtype.FLOAT16, ComputeDtype.BFLOAT16
NOTHING = Distances(**dict.fromkeys(Distances.__slots__, 0.0))


def row(*values: float) -> Distances:
    return Distances(**dict(zip(Distances.__slots__, values, strict=True)))


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
    assert exceeded(HONEST[pair], limits(*pair, StoreDtype.BFLOAT16, 256)) is None


@pytest.mark.parametrize("pair", list(HONEST))
def test_int8_weights_do_not_pass_in_any_class(pair: tuple[ComputeDtype, ComputeDtype]) -> None:
    assert exceeded(INT8, limits(*pair, StoreDtype.BFLOAT16, 256)) is not None


def test_int8_weights_are_ten_times_above_the_float32_limits() -> None:
    allowed = limits(F32, F32, StoreDtype.BFLOAT16, 256)
    assert INT8.v_median > 10 * allowed.v_median and INT8.k_median > 10 * allowed.k_median


def test_order_of_the_two_does_not_matter() -> None:
    for a, b in combinations_with_replacement((F32, F16, B16), 2):
        assert limits(a, b, StoreDtype.FLOAT16, 64) == limits(b, a, StoreDtype.FLOAT16, 64)


def test_coarser_arithmetic_is_allowed_more() -> None:
    for store in StoreDtype:
        for fine, coarse in (((F32, F32), (F32, F16)), ((F32, F16), (F32, B16)), ((F32, F32), (B16, B16))):
            assert all(
                low <= high
                for low, high in zip(
                    astuple(limits(*fine, store, 256)), astuple(limits(*coarse, store, 256)), strict=True
                )
            )


def test_shorter_chunks_are_allowed_more_but_never_without_bound() -> None:
    last = limits(B16, B16, StoreDtype.BFLOAT16, 4096)
    for tokens in (512, 256, 100, 16, 1):
        wider = limits(B16, B16, StoreDtype.BFLOAT16, tokens)
        assert all(a >= b for a, b in zip(astuple(wider), astuple(last), strict=True))
        last = wider
    assert last.v_median < 0.05 and last.v_worst_block < 1


def test_class_that_is_not_settled_has_no_tolerance() -> None:
    with pytest.raises(InvalidError, match="a report names the dtype"):
        limits(ComputeDtype.AUTO, F32, StoreDtype.BFLOAT16, 256)


@pytest.mark.parametrize("field", [field.name for field in fields(Distances)])
def test_each_statistic_alone_can_reject_and_is_named(field: str) -> None:
    allowed = limits(F32, F32, StoreDtype.BFLOAT16, 256)
    half, _, rest = field.partition("_")
    for value in (getattr(allowed, field) * 1.01, float("nan"), float("inf")):
        told = exceeded(replace(NOTHING, **{field: value}), allowed)
        assert told is not None and told.startswith(f"{half.upper()} {rest.replace('_', ' ')} ")
    assert exceeded(NOTHING, allowed) is None
