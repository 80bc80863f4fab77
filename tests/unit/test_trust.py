"""How much of a host's work is looked at: rarer with every audit passed, everything again after a fault."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from memgrid.kinds.audit import Zone
from memgrid_coordinator.policy.trust import (
    NEWCOMER,
    ClassRecord,
    Judgement,
    TrustRecord,
    TrustRule,
    after_agreement,
    after_audit,
    after_result,
    audit_probability,
    check_of,
    held_max,
    is_class_suspended,
    is_final,
    is_final_at_once,
    is_overdue,
)

RULE = TrustRule()
NOW = datetime(2026, 1, 1, tzinfo=UTC)

shares = st.floats(0.01, 0.9)
rules = st.builds(
    TrustRule,
    epsilon=st.floats(1e-5, 0.1),
    bad_share=st.floats(0.01, 0.6),
    detection=st.floats(0.1, 1.0),
    audits_min=st.floats(0.0, 1.0),
    look_back=st.integers(0, 5000),
)
records = st.builds(
    TrustRecord,
    results=st.integers(0, 10_000),
    passed=st.integers(0, 5000),
    faults=st.integers(0, 40),
    recent=st.lists(st.sampled_from([Zone.PASS, Zone.SUSPICIOUS]), max_size=20).map(tuple),
)
zones = st.sampled_from(list(Zone))


def trusted(passed: int = 1000, faults: int = 0) -> TrustRecord:
    return TrustRecord(results=20 * passed, passed=passed, faults=faults)


def test_who_agrees_with_itself_is_looked_at_no_less() -> None:
    record = NEWCOMER
    for _ in range(1000):
        record = after_agreement(record)
    assert audit_probability(record, RULE) == audit_probability(NEWCOMER, RULE) == 1
    assert not is_final_at_once(record, RULE)


@given(records, rules)
def test_the_probability_lies_between_the_floor_and_one(record: TrustRecord, rule: TrustRule) -> None:
    assert rule.audits_min <= audit_probability(record, rule) <= 1.0


@given(rules)
def test_a_newcomer_is_always_audited(rule: TrustRule) -> None:
    assert audit_probability(NEWCOMER, rule) == 1.0


@given(records, rules, st.binary(min_size=32, max_size=32))
def test_probation_is_always_audited_whatever_the_draw(record: TrustRecord, rule: TrustRule, draw: bytes) -> None:
    begun = replace(record, results=record.results % rule.probation_results)
    assert check_of(begun, rule, draw).is_audited


@given(records, rules)
def test_one_more_audit_passed_never_raises_the_probability(record: TrustRecord, rule: TrustRule) -> None:
    better, _ = after_audit(replace(record, recent=()), Zone.PASS, rule)
    assert audit_probability(better, rule) <= audit_probability(record, rule)


@given(records, rules)
def test_one_more_fault_never_lowers_the_probability(record: TrustRecord, rule: TrustRule) -> None:
    worse = replace(record, faults=record.faults + 1)
    assert audit_probability(worse, rule) >= audit_probability(record, rule)


@given(records, rules)
def test_a_fault_loses_everything_but_the_count_of_faults(record: TrustRecord, rule: TrustRule) -> None:
    after, judgement = after_audit(record, Zone.FAULT, rule)
    assert judgement is Judgement.AT_FAULT
    assert after == TrustRecord(faults=record.faults + 1)
    assert audit_probability(after, rule) == 1.0


@given(st.integers(0, 19))
def test_whoever_is_marked_is_always_audited_until_the_mark_is_twenty_audits_old(at: int) -> None:
    recent = [Zone.PASS] * 20
    recent[at] = Zone.SUSPICIOUS
    marked = replace(trusted(), recent=tuple(recent))
    for _ in range(at + 1):
        assert audit_probability(marked, RULE) == 1.0
        marked, _ = after_audit(marked, Zone.PASS, RULE)
    assert audit_probability(marked, RULE) == RULE.audits_min


def test_whoever_erred_needs_twice_as_many_audits_to_be_trusted_again() -> None:
    once = math.ceil(RULE.audits_to_trust)
    assert audit_probability(trusted(once), RULE) == RULE.audits_min
    assert audit_probability(trusted(once, faults=1), RULE) > 0.5
    assert audit_probability(trusted(2 * once, faults=1), RULE) == RULE.audits_min


@given(st.permutations([Zone.SUSPICIOUS] * 3 + [Zone.PASS] * 17))
def test_three_suspicious_of_twenty_are_a_fault_in_any_order(order: list[Zone]) -> None:
    record, judgements = NEWCOMER, []
    for zone in order:
        record, judgement = after_audit(record, zone, RULE)
        judgements.append(judgement)
    third = max(at for at, zone in enumerate(order) if zone is Zone.SUSPICIOUS)
    assert judgements[third] is Judgement.AT_FAULT
    assert judgements.count(Judgement.AT_FAULT) == 1
    assert record.faults == 1


def test_three_suspicious_of_twenty_one_are_none() -> None:
    record = NEWCOMER
    for zone in [Zone.SUSPICIOUS, *[Zone.PASS] * 18, Zone.SUSPICIOUS, Zone.SUSPICIOUS]:
        record, judgement = after_audit(record, zone, RULE)
    assert judgement is Judgement.SUSPECTED
    assert record.faults == 0


@given(records.filter(lambda record: record.recent.count(Zone.SUSPICIOUS) < 2))
def test_one_accident_is_marked_once_and_earns_nothing(record: TrustRecord) -> None:
    marked, judgement = after_audit(record, Zone.SUSPICIOUS, RULE)
    assert judgement is Judgement.SUSPECTED
    assert marked.passed == record.passed
    assert after_audit(marked, Zone.SUSPICIOUS, RULE, is_second=True) == (marked, Judgement.SUSPECTED)
    assert after_audit(marked, Zone.PASS, RULE, is_second=True) == (marked, Judgement.PASSED)


@given(records, zones)
def test_every_result_is_counted_once_and_the_window_is_bounded(record: TrustRecord, zone: Zone) -> None:
    after, judgement = after_audit(record, zone, RULE)
    assert after.results == (0 if judgement is Judgement.AT_FAULT else record.results + 1)
    assert len(after.recent) <= RULE.suspicion_window
    assert after_result(record) == replace(record, results=record.results + 1)


def test_audits_and_replicas_are_drawn_as_often_as_they_should_be() -> None:
    draws = random.Random(7)
    many = 20_000
    record = TrustRecord(results=300, passed=24)
    checks = [check_of(record, RULE, draws.randbytes(32)) for _ in range(many)]
    audited = sum(check.is_audited for check in checks)
    expected = many * audit_probability(record, RULE)
    assert abs(audited - expected) < 5 * math.sqrt(many / 4)
    replicated = sum(check.is_replicated for check in checks)
    expected = (many - audited) * RULE.blind_share
    assert abs(replicated - expected) < 5 * math.sqrt(expected)
    assert not any(check.is_audited and check.is_replicated for check in checks)
    probation = sum(check_of(NEWCOMER, RULE, draws.randbytes(32)).is_replicated for _ in range(many))
    assert abs(probation - many * RULE.probation_blind) < 5 * math.sqrt(many / 4)


@given(records, st.binary(min_size=32, max_size=32))
def test_a_check_depends_on_record_and_draw_alone(record: TrustRecord, draw: bytes) -> None:
    assert check_of(record, RULE, draw) == check_of(record, RULE, draw)


@given(records, st.binary(min_size=32, max_size=32))
def test_where_nobody_is_punished_everything_is_looked_at_twice(record: TrustRecord, draw: bytes) -> None:
    check = check_of(record, RULE, draw, is_class_suspended=True)
    assert check.is_audited
    assert check.is_replicated


@given(st.integers(0, 1000), st.integers(1, 512))
def test_ten_audits_double_the_quota_up_to_the_grids(passed: int, most: int) -> None:
    now, later = held_max(passed, RULE, most), held_max(passed + 10, RULE, most)
    assert later == min(most, 2 * now if now < most else most)
    assert 1 <= now <= most


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 100), st.integers(0, 100))
def test_a_class_is_suspended_when_many_of_its_audits_and_hosts_fail(
    audits: int, failed: int, hosts: int, hosts_failed: int
) -> None:
    of_class = ClassRecord(audits=audits, failed=failed, hosts=hosts, hosts_failed=hosts_failed)
    many = audits >= 20 and 20 * failed > audits
    assert is_class_suspended(of_class, RULE) == (many and hosts_failed >= 3 and 5 * hosts_failed > hosts)


@given(records)
def test_an_audit_passed_makes_a_result_final_at_once_except_in_probation(record: TrustRecord) -> None:
    assert is_final_at_once(record, RULE) == (record.results >= RULE.probation_results)


def test_an_unaudited_result_is_final_after_two_later_audits_and_waits_a_day_at_most() -> None:
    assert [is_final(passed, RULE) for passed in (0, 1, 2, 3)] == [False, False, True, True]
    assert not is_overdue(NOW, NOW + timedelta(hours=23), RULE)
    assert is_overdue(NOW, NOW + timedelta(hours=24), RULE)


@given(rules, st.floats(0.0, 1.0))
def test_no_rate_of_cheating_beats_the_bound_once_trust_is_reached(rule: TrustRule, rate: float) -> None:
    """Sarmenta's bound: f / (1 - f) q (1 - q d)^k is at most epsilon for every q, at k = k*."""
    odds = rule.bad_share / (1 - rule.bad_share)
    survives = (1 - rate * rule.detection) ** rule.audits_to_trust
    assert odds * rate * survives <= rule.epsilon * (1 + 1e-9)


@given(rules, st.floats(1e-6, 0.2), st.floats(0.0, 0.9))
def test_a_campaigns_wishes_only_tighten_and_bind_the_patient_cheat(
    rule: TrustRule, epsilon: float, bad_share: float
) -> None:
    """A cheat with rate q stays with (1 - p d) exp(-q p d R): at most f (1 - p d) / (e p d R), at q = 1 / (p d R)."""
    strict = rule.at_least(epsilon, bad_share)
    assert strict.epsilon <= min(rule.epsilon, epsilon)
    assert strict.bad_share >= max(rule.bad_share, bad_share)
    assert strict.audits_min >= rule.audits_min
    assert strict.audits_to_trust >= rule.audits_to_trust * (1 - 1e-9)
    caught = strict.audits_min * strict.detection
    if strict.audits_min < 1 and strict.look_back:
        left = strict.bad_share * (1 - caught) / (math.e * caught * strict.look_back)
        assert left <= strict.epsilon * (1 + 1e-9)


def test_reaching_trust_takes_some_hundred_and_fifty_honest_results() -> None:
    needed = sum(1 / audit_probability(TrustRecord(results=99, passed=k), RULE) for k in range(48))
    assert 140 < needed < 160
