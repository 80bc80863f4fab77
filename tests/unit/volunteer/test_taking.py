"""The decisions beside the owner's: what to ask for, who rests, how fast bytes go; nobody idles for no reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of
from memgrid.units import NO_WISHES, Reason, ReasonCode
from memgrid_volunteer.budget import BURST_S, Bucket
from memgrid_volunteer.desk import AHEAD_UNITS_MAX, AHEAD_UNITS_MIN, wanted
from memgrid_volunteer.health import FAILURES_BEFORE_REST, REST_MAX_S, WELL, after_failure
from memgrid_volunteer.owner.decision import RUN, Action, Decision
from memgrid_volunteer.owner.preferences import KINDS, Work
from memgrid_volunteer.ready import PASSED_OVER_MAX, choice
from memgrid_volunteer.taking import Situation, standing, why_nothing_is_taken, wishes_of
from memgrid_volunteer.timekeeping import JUMP_S, Timekeeper

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
reasons = st.builds(Reason, code=st.sampled_from(ReasonCode), text=st.sampled_from(["", "why"]))
decisions = st.one_of(
    st.just(RUN),
    st.builds(Decision, action=st.just(Action.THROTTLE), duty=st.just(0.5), reason=reasons),
    st.builds(
        Decision, action=st.sampled_from([Action.PAUSE_KEEP, Action.PAUSE_RELEASE]), duty=st.just(0.0), reason=reasons
    ),
)
situations = st.builds(
    Situation,
    decisions=st.dictionaries(st.sampled_from(["cuda:0", "cuda:1", "cpu"]), decisions),
    network_spared=st.none() | reasons,
    rest=st.none() | reasons,
    data_away=st.none() | st.just("the store does not answer"),
    outbox_is_full=st.booleans(),
    wishes=st.sampled_from([None, NO_WISHES]),
    grid_away=st.none() | st.just("the coordinator does not answer"),
    is_computing=st.booleans(),
    holds_units=st.booleans(),
    grid_reason=st.none() | reasons,
)


@given(situations)
def test_nobody_idles_without_a_reason(situation: Situation) -> None:
    state, reason = standing(situation)
    assert (state == "running") == (reason is None)
    may_compute = any(decision.may_compute for decision in situation.decisions.values())
    if state == "running":
        assert situation.is_computing and may_compute
    assert (state == "paused") == (not may_compute)


@given(situations)
def test_nothing_is_asked_for_while_anything_stands_against_it(situation: Situation) -> None:
    against = (
        not any(decision.may_compute for decision in situation.decisions.values()),
        situation.network_spared is not None,
        situation.rest is not None,
        situation.data_away is not None,
        situation.outbox_is_full,
        situation.wishes is None,
    )
    assert (why_nothing_is_taken(situation) is not None) == any(against)


def test_the_owner_hears_of_more_than_that_a_device_is_switched_off() -> None:
    off = Decision(action=Action.PAUSE_RELEASE, duty=0.0, reason=Reason(code=ReasonCode.DEVICE_DISABLED))
    hot = Decision(action=Action.PAUSE_KEEP, duty=0.0, reason=Reason(code=ReasonCode.TOO_HOT))
    _, reason = standing(Situation(decisions={"cpu": off, "cuda:0": hot}))
    assert reason is not None and reason.code is ReasonCode.TOO_HOT


@given(st.sets(st.sampled_from(KINDS)), st.sets(st.sampled_from(KINDS)), st.none() | st.floats(0.1, 1e6))
def test_only_kinds_that_the_owner_takes_are_wished(
    taken: set[str], avoided: set[str], minutes: float | None
) -> None:
    wishes = wishes_of(Work(kinds=tuple(taken), kinds_avoided=tuple(avoided), max_runtime_minutes=minutes))
    left = (taken or set(KINDS)) - avoided
    assert (wishes is None) == (not left)
    if wishes is not None:
        assert wishes.kinds == left, "of kinds that a later release knows, this one can compute none"
        assert wishes.longest is None or timedelta(0) < wishes.longest <= timedelta(days=1)


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=40))
def test_rests_grow_to_an_end_and_success_ends_them(pauses: list[float]) -> None:
    reason, health, now_s, rests = Reason(code=ReasonCode.UNIT_FAILED), WELL, 0.0, []
    for pause_s in pauses:
        now_s = max(now_s + pause_s, health.rests_until_s)
        health = after_failure(health, reason, now_s)
        rests.append(max(0.0, health.rests_until_s - now_s))
    assert all(rest == 0 for rest in rests[: FAILURES_BEFORE_REST - 1])
    grown = rests[FAILURES_BEFORE_REST - 1 :]
    assert all(0 < one < other + 1e-6 < REST_MAX_S + 1e-3 for one, other in pairwise(grown))
    assert not WELL.is_resting(now_s)


def test_a_fault_of_the_device_needs_no_second_one() -> None:
    health = after_failure(WELL, Reason(code=ReasonCode.UNIT_FAILED), 0.0, is_certain=True)
    assert health.is_resting(1.0)


@given(
    st.lists(st.tuples(st.integers(0, 100_000), st.floats(0, 3)), max_size=50),
    st.sampled_from([1e3, 64e3, 1e6]),
)
def test_no_more_passes_than_the_rate_allows(blocks: list[tuple[int, float]], rate: float) -> None:
    bucket, now_s, passed = Bucket(rate=rate), 0.0, 0
    for size_bytes, pause_s in blocks:
        now_s += pause_s
        now_s += bucket.take(size_bytes, now_s)
        passed += size_bytes
        assert passed <= rate * (now_s + BURST_S) + 1


def test_a_new_rate_counts_at_once() -> None:
    bucket = Bucket(rate=10.0)
    assert bucket.take(1000, 0.0) == 99.0
    bucket.rate = 1e6
    assert bucket.take(0, 1.0) == 0.0
    bucket.rate = None
    assert bucket.take(10**9, 1.0) == 0.0


@given(st.integers(0, 100), st.floats(0.01, 100), st.integers(0, 16))
def test_every_device_has_work_ahead_and_no_more_than_it_can_hold(held: int, unit_s: float, devices: int) -> None:
    more = wanted(held, held * unit_s, devices)
    assert more >= AHEAD_UNITS_MIN * devices - held
    assert more == 0 or held + more <= AHEAD_UNITS_MAX * devices


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=30))
def test_a_warm_model_goes_first_and_nobody_waits_for_ever(models: list[str]) -> None:
    queue = [(digest_of(model.encode()), 0) for model in models]
    warm = digest_of(b"a")
    while queue:
        index = choice(queue, warm)
        model, passed_over = queue[index]
        assert passed_over <= PASSED_OVER_MAX
        if index:
            assert model == warm and queue[0][0] != warm
        queue = [(m, p + 1) for m, p in queue[:index]] + queue[index + 1 :]


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(-1e5, 1e5)), min_size=1, max_size=20))
def test_only_jumps_are_told(steps: list[tuple[float, float]]) -> None:
    keeper, now, monotonic_s = Timekeeper(), NOON, 0.0
    keeper.jumped_s(now, monotonic_s)
    for passed_s, ahead_s in steps:
        monotonic_s += passed_s
        now += timedelta(seconds=passed_s + ahead_s)
        jumped_s = keeper.jumped_s(now, monotonic_s)
        assert jumped_s == (pytest.approx(ahead_s, abs=1e-3) if abs(ahead_s) >= JUMP_S + 1e-3 else jumped_s)
        assert jumped_s == 0.0 or abs(jumped_s) >= JUMP_S
