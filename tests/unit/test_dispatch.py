"""Which of the open units a host is given: urgency first, then what its cache holds, then age."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of
from memgrid_coordinator.policy.dispatch import preferred
from memgrid_coordinator.records import Unit
from tests.unit.test_life import UNIT

HERE, ELSEWHERE = digest_of(b"here"), digest_of(b"elsewhere")
units = st.lists(st.tuples(st.integers(-2, 2), st.sampled_from([HERE, ELSEWHERE])), max_size=12).map(
    lambda drawn: [
        replace(UNIT, unit_id=number, priority=priority, model=model)
        for number, (priority, model) in enumerate(sorted(drawn, key=lambda one: -one[0]))
    ]
)


@given(units, st.integers(1, 12))
def test_a_model_at_hand_never_goes_before_urgency_and_never_costs_a_unit(found: list[Unit], most: int) -> None:
    chosen = preferred(found, frozenset({HERE}), most)
    assert len(chosen) == min(most, len(found))
    assert [unit.priority for unit in chosen] == [unit.priority for unit in found][:most]
    for priority in {unit.priority for unit in chosen}:
        equal = [unit for unit in found if unit.priority == priority]
        wanted = [unit for unit in equal if unit.model == HERE] + [unit for unit in equal if unit.model != HERE]
        taken = [unit for unit in chosen if unit.priority == priority]
        assert taken == wanted[: len(taken)]


@given(units, st.integers(1, 12))
def test_without_a_cache_the_order_is_that_of_the_queue(found: list[Unit], most: int) -> None:
    assert preferred(found, frozenset(), most) == found[:most]
