"""Limits let every honest sample through, leave room where there is some, and name the cheats they can't see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.tolerances import BUILT_IN
from memgrid_coordinator.heavy.calibration.evidence import evidence, tolerances_of
from memgrid_coordinator.heavy.calibration.probing import UNIT_LIMITS, in_effect
from memgrid_coordinator.heavy.calibration.ways import CHEATS
from memgrid_coordinator.policy.calibrating import FitRule, FittedRow, Samples, fit, shares
from memgrid_coordinator.policy.known_cheats import MAY_MISS, floors, may_miss

ROW = "train.sketch/bfloat16+float32"
NAMES = tuple(BUILT_IN.rows[ROW])
PIECES = 20
SMOL = ModelGeometry(
    layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152, parameters=134515008, tied_embeddings=True
)


def samples(cheat: str, smallest: float, largest: float, *, row: str = ROW, seed: int = 0) -> Samples:
    """Three cases a text, evenly between two values, in every statistic."""
    names = tuple(BUILT_IN.rows[row])
    values = np.random.default_rng(seed).uniform(smallest, largest, (3 * PIECES, len(names)))
    return Samples(row=row, cheat=cheat, ways="", names=names, values=values, pieces=np.repeat(np.arange(PIECES), 3))


def fitted(*given: Samples, **options: object) -> FittedRow:
    rows = fit(given, fit_pieces=10, may_miss=may_miss, floors=lambda row, known: {}, **options)  # type: ignore[arg-type]
    return rows[ROW]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-6, 1.0), st.floats(1.0, 1.4))
def test_no_honest_sample_is_beyond_limits_fitted_to_texts_like_it(seed: int, smallest: float, span: float) -> None:
    row = fitted(samples("", smallest, span * smallest, seed=seed))
    assert (row.tried_on, row.rejected, row.fitted_to, row.texts) == (30, 0, 30, 10)
    assert row.furthest <= 1 / FitRule().margin * 1.2
    assert all(each.limit >= FitRule().margin * each.honest_max for each in row.statistics.values())


def test_a_cheat_far_off_leaves_room_up_to_the_geometric_middle_and_is_a_fault() -> None:
    row = fitted(samples("", 0.9e-3, 1e-3), samples("int4 weights", 0.1, 0.2))
    (sight,) = row.sights
    assert 5 < row.raised < 12
    assert sight.is_seen and sight.faults == sight.cases == 30 and sight.smallest > FitRule().clear
    assert row.overlaps == row.unseen == ()
    for each in row.statistics.values():
        assert each.seen == ("int4 weights",) and each.ratio is not None and each.ratio > 90


def test_a_cheat_just_outside_is_seen_and_nothing_is_raised() -> None:
    row = fitted(samples("", 0.9e-3, 1e-3), samples("int4 weights", 1.5e-3, 1.6e-3))
    assert row.raised == 1
    assert row.sights[0].is_seen and row.sights[0].faults == 0


def test_a_cheat_inside_honest_values_is_an_overlap_unless_it_may_be_missed() -> None:
    honest = samples("", 0.9e-3, 1e-3)
    row = fitted(honest, samples("int4 weights", 0.8e-3, 1e-3))
    assert [sight.cheat for sight in row.overlaps] == ["int4 weights"] and row.unseen == ()
    row = fitted(honest, samples("fine-tuned by 1.2e-5", 0.8e-3, 1e-3))
    assert [sight.cheat for sight in row.unseen] == ["fine-tuned by 1.2e-5"] and row.overlaps == ()


def test_a_cheat_that_may_be_missed_but_is_seen_is_not_lost_to_room() -> None:
    row = fitted(
        samples("", 0.9e-3, 1e-3), samples("int4 weights", 1, 2), samples("fine-tuned by 1.2e-5", 0.004, 0.005)
    )
    assert row.raised < 2 and all(sight.is_seen for sight in row.sights)


def test_one_statistic_is_enough_to_see_a_cheat_and_is_named() -> None:
    cheat = samples("RoPE off by one", 0.9e-3, 1e-3)
    cheat.values[:, 1] = 0.5
    row = fitted(samples("", 0.9e-3, 1e-3), cheat)
    assert row.sights[0].is_seen
    assert [name for name, each in row.statistics.items() if each.seen] == [NAMES[1]]
    assert row.statistics[NAMES[0]].smallest_cheat is None


def test_pairs_of_a_coarse_class_are_allowed_at_least_what_each_is_against_float32() -> None:
    against, alike, exact = (
        f"prefill.sketch/{pair}/bfloat16" for pair in ("bfloat16+float32", "bfloat16+bfloat16", "float32+float32")
    )
    given = [samples("", 0.9e-2, 1e-2, row=against), samples("", 1e-5, 2e-5, row=alike), samples("", 0, 0, row=exact)]
    rows = fit(given, fit_pieces=10, may_miss=may_miss, floors=floors)
    assert rows[alike].limits == rows[against].limits
    assert all(limit > 1e-2 for limit in rows[against].limits.values())
    assert rows[exact].limits == BUILT_IN.rows[exact]


def test_few_audits_widen_built_in_limits_and_never_tighten_them() -> None:
    (row,) = fit([samples("", 1e-9, 2e-9)], fit_pieces=10, may_miss=may_miss, floors=floors).values()
    assert row.limits == BUILT_IN.rows[ROW]
    (row,) = fit([samples("", 0.5, 0.6)], fit_pieces=10, may_miss=may_miss, floors=floors).values()
    assert all(row.limits[name] > BUILT_IN.rows[ROW][name] for name in NAMES)


def test_numbers_that_are_none_and_anything_where_nothing_is_allowed_are_infinitely_far() -> None:
    values = np.array([[0.0, 0.5], [np.nan, 0.5], [1e-9, 0.5]])
    assert shares(values, np.array([0.0, 1.0])).tolist() == [0.5, np.inf, np.inf]


def test_blocks_widen_what_layers_are_allowed_as_the_check_does() -> None:
    key = "prefill.sketch/bfloat16+float32/bfloat16"
    found = in_effect(key, {**BUILT_IN.rows[key], "V worst block": 3.0}, SMOL, 256)
    assert found["V worst layer"] == pytest.approx(3.0 / 4 / 1.25)
    assert found["V median"] == BUILT_IN.rows[key]["V median"]
    assert in_effect(ROW, {"worst part": 1.0}, SMOL, 256) == {"worst part": 1.0}


def test_the_table_keeps_what_is_no_limit_and_the_evidence_is_plain_json() -> None:
    row = fitted(samples("", 0.9e-3, 1e-3), samples("x", 1, 2))
    table = tolerances_of({ROW: row}, BUILT_IN, "a test")
    assert dict(table.rows[ROW]) == row.limits
    assert type(table).from_bytes(table.to_bytes()) == table
    found = evidence(facts={"model": "m"}, rows={ROW: row}, samples=[samples("x", 1, 2)], lossless=["y"])
    assert found["no_cheat_here"] == ["y"] and found["rows"][ROW]["sights"][0]["is_seen"] is True
    assert found["samples"][0]["cases"] == 60


def test_cheats_that_may_be_missed_are_cheats_there_are() -> None:
    assert {cheat for cheats in MAY_MISS.values() for cheat in cheats} <= set(CHEATS)
    assert set(UNIT_LIMITS.rows) == set(BUILT_IN.rows)
