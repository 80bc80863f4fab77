"""Near a campaign's end the slowest units are computed twice: few of them, and only where it helps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memgrid.units import UnitKey
from memgrid_coordinator.policy.tails import Running, TailRule, remaining_s, worth_copying

RULE = TailRule()

runnings = st.lists(
    st.builds(
        Running,
        unit_key=st.integers(0, 10**6).map(lambda number: UnitKey(f"{number:064x}")),
        flops=st.integers(10**9, 10**13),
        elapsed_s=st.floats(0, 1e5),
        estimate_s=st.floats(1, 1e5),
        silent_s=st.floats(0, 2000),
        copies=st.integers(1, 3),
    ),
    max_size=12,
    unique_by=lambda one: one.unit_key,
)
speeds = st.floats(1e8, 1e14)


@given(runnings, speeds, st.integers(1, 1000))
def test_a_copy_is_expected_to_end_clearly_sooner(running: list[Running], flops_per_s: float, units: int) -> None:
    key = worth_copying(running, flops_per_s=flops_per_s, units=units, rule=RULE)
    chosen = next((one for one in running if one.unit_key == key), None)
    if chosen is not None:
        assert remaining_s(chosen, RULE) >= RULE.speedup_min * chosen.flops / flops_per_s
        assert chosen.copies < RULE.copies_max


@given(runnings, speeds)
def test_copies_stop_at_their_share(running: list[Running], flops_per_s: float) -> None:
    copies = sum(one.copies - 1 for one in running)
    if copies >= 1:
        assert worth_copying(running, flops_per_s=flops_per_s, units=copies, rule=RULE) is None


@given(runnings, speeds, st.randoms(use_true_random=False))
def test_the_order_of_asking_does_not_matter(running: list[Running], flops_per_s: float, order: object) -> None:
    shuffled = list(running)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    asked = [worth_copying(units, flops_per_s=flops_per_s, units=1000, rule=RULE) for units in (running, shuffled)]
    assert asked[0] == asked[1]


@given(runnings, speeds)
def test_the_longest_of_those_worth_copying_goes_first(running: list[Running], flops_per_s: float) -> None:
    key = worth_copying(running, flops_per_s=flops_per_s, units=10**6, rule=RULE)
    worth = [
        one
        for one in running
        if one.copies < RULE.copies_max
        and one.elapsed_s >= RULE.elapsed_min_s
        and remaining_s(one, RULE) >= RULE.speedup_min * one.flops / flops_per_s
    ]
    longest = max((remaining_s(one, RULE) for one in worth), default=None)
    assert (key is None) == (longest is None)
    assert all(remaining_s(one, RULE) == longest for one in running if one.unit_key == key)


def test_a_silent_host_is_expected_never_to_end() -> None:
    silent = Running(unit_key=UnitKey("a"), flops=10**12, elapsed_s=30, estimate_s=60, silent_s=901)
    assert worth_copying([silent], flops_per_s=1e9, units=10, rule=RULE) == "a"
    heard = Running(unit_key=UnitKey("a"), flops=10**12, elapsed_s=30, estimate_s=60)
    assert worth_copying([heard], flops_per_s=1e9, units=10, rule=RULE) is None
    begun = Running(unit_key=UnitKey("a"), flops=10**12, elapsed_s=29, estimate_s=10**5)
    assert worth_copying([begun], flops_per_s=1e12, units=10, rule=RULE) is None
