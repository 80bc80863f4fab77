"""Whole grids in seconds: what the rules of trust promise, measured on virtual hosts against closed forms."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from memgrid_coordinator.policy.trust import TrustRule
from memgrid_coordinator.simulation.figures import figures, of_policy
from memgrid_coordinator.simulation.running import simulate
from memgrid_coordinator.simulation.scenario import PolicyName, Scenario
from memgrid_coordinator.simulation.tally import Tally

HONEST = {"name": "honest", "kind": "honest"}


def scenario(*others: dict[str, Any], **changes: Any) -> Scenario:
    """Some equal machines, always on, computing a unit an hour for ever; everybody else is honest."""
    honest = {**HONEST, "share": 1 - sum(one["share"] for one in others)}
    whole = {
        "name": "test",
        "days": 10,
        "hosts": 200,
        "devices": [{"name": "machine", "share": 1, "flops_per_s": 1e12, "spread": 0.0}],
        "availability": {"off_hours": 0.0},
        "populations": [honest, *others],
        "campaigns": [{"name": "endless", "unit_flops": 3.6e15, "spread": 0.2}],
    }
    return Scenario.model_validate({**whole, **changes})


def outcome(of: Scenario, policy: PolicyName = PolicyName.MEMGRID) -> Tally:
    return simulate(of.model_copy(update={"policies": (policy,)}))[policy]


def wrong_share(tally: Tally) -> float:
    return tally.wrong_standing / tally.accepted


SLEEPERS = {"name": "sleepers", "share": 0.1, "kind": "sleeper", "wrong_rate": 1.0}
PATIENT = {"name": "patient", "share": 0.2, "kind": "sleeper", "wrong_rate": 0.02}
GANG = {"name": "gang", "share": 0.2, "kind": "colluding", "wrong_rate": 1.0, "group": 0, "only_together": True}
FARM = {"name": "farm", "share": 0.2, "kind": "sybil", "wrong_rate": 1.0, "group": 0, "only_together": True}
FLAKY = {"name": "flaky", "share": 0.1, "kind": "flaky", "wrong_rate": 0.05}


def test_a_seed_is_one_history_on_any_number_of_processes() -> None:
    small = scenario(SLEEPERS, FLAKY, hosts=60, partition_hosts=20, days=3, policies=["memgrid", "boinc_adaptive"])
    texts = [json.dumps(figures(small, simulate(small, processes=processes))) for processes in (1, 1, 2)]
    assert texts[0] == texts[1] == texts[2]
    other = small.model_copy(update={"seed": 2})
    assert json.dumps(figures(other, simulate(other))["policies"]) not in texts[0]


def test_bold_sleepers_cost_little_and_leave_next_to_nothing() -> None:
    bold = scenario(SLEEPERS, days=20, hosts=100)
    tally = outcome(bold)
    found = of_policy(bold, tally)
    assert tally.recalled_wrong > 0
    assert found["recalled_of_unfinished"] == 1.0
    assert found["detection"]["sleepers"]["caught"] > 0.9
    assert found["wrong_standing"] < 5e-4
    assert found["cost"] <= 1.12
    assert found["honest_accused_per_result"] == 0.0


def test_patient_cheats_under_ever_new_names_stay_well_below_the_closed_form() -> None:
    """At most f (1 - p d) / (e p d R), without blind replicas and with trust that costs nothing to win back.

    Look-backs are shortened, so that the worst rate of cheating fits into the days.
    """
    look_back = 100
    caught = TrustRule().audits_min * TrustRule().detection
    bound = PATIENT["share"] * (1 - caught) / (math.e * caught * look_back)
    patient = {**PATIENT, "kind": "whitewashing", "wrong_rate": 1 / (caught * look_back)}
    tally = outcome(scenario(patient, days=25, hosts=100, trust={"look_back": look_back}))
    assert 0 < wrong_share(tally) < bound / 2 < tally.wrong_first / tally.counted_first


def test_a_gang_beats_a_quorum_of_two_as_often_as_it_fills_it() -> None:
    """With a share f of the hosts: f squared, and nobody ever notices."""
    tally = outcome(scenario(GANG), PolicyName.QUORUM2)
    expected = GANG["share"] ** 2
    deviation = math.sqrt(expected * (1 - expected) / tally.accepted)
    assert abs(wrong_share(tally) - expected) < 5 * deviation
    assert tally.populations["gang"].faults == 0


def test_a_farm_in_one_network_confirms_itself_with_boinc_and_not_with_us() -> None:
    assert wrong_share(outcome(scenario(FARM, hosts=100), PolicyName.QUORUM2)) == 0.0
    assert wrong_share(outcome(scenario(FARM, hosts=100), PolicyName.BOINC_ADAPTIVE)) > 1e-3


def test_sleepers_fool_boinc_in_a_third_of_their_results() -> None:
    share = wrong_share(outcome(scenario(SLEEPERS), PolicyName.BOINC_ADAPTIVE))
    assert 0.2 * SLEEPERS["share"] < share < 0.5 * SLEEPERS["share"]


def test_looking_back_and_waiting_for_finality_each_find_what_the_other_does_not() -> None:
    with_both = outcome(scenario(SLEEPERS, PATIENT, days=15, hosts=100))
    blind = outcome(scenario(SLEEPERS, PATIENT, days=15, hosts=100, trust={"look_back": 0}))
    assert with_both.retracted > 0
    assert blind.retracted == 0
    assert wrong_share(with_both) < wrong_share(blind)
    assert with_both.wrong_final < with_both.wrong_first


def test_quiet_cheats_are_found_by_suspicions_alone_and_their_results_computed_anew() -> None:
    seen = {"audit": 0.0, "suspicious": 0.25, "sketch": 0.0}
    quiet = {"name": "quiet", "share": 0.1, "kind": "sleeper", "wrong_rate": 1.0, "detection": seen}
    tally = outcome(scenario(quiet, days=20, hosts=60))
    assert len(tally.populations["quiet"].caught_hours) == tally.populations["quiet"].cheated_hosts == 6
    assert tally.computed_anew > 100
    assert tally.populations["quiet"].wrong_standing < tally.populations["quiet"].wrong / 10


def test_whoever_takes_a_new_name_after_each_wrong_result_leaves_nothing() -> None:
    """Audits miss one in twenty, and there is never a later one under the same name."""
    farm = {"name": "farm", "share": 0.1, "kind": "sybil", "wrong_rate": 1.0, "group": 0}
    tally = outcome(scenario(farm, days=5, hosts=100))
    assert tally.populations["farm"].wrong > 1000
    assert tally.populations["farm"].wrong_standing <= 5


def test_nothing_stays_provisional_beyond_its_time_where_audits_are_rare() -> None:
    """At a unit an hour two later audits take a day; here a result waits for six hours, then gets its own."""
    tally = outcome(scenario(days=15, hosts=20, trust={"provisional_max_hours": 6}))
    assert tally.overdue_audits > 100
    assert 0 < tally.provisional <= 20 * 7


def test_honest_hosts_are_never_accused_though_their_audits_are_suspicious_now_and_then() -> None:
    tally = outcome(scenario(days=15, hosts=100, audits={"suspicious": 0.002, "suspicious_again": 1.0}))
    assert tally.second_audits > 0
    assert tally.populations["honest"].accused == 0


def test_a_buggy_class_is_suspended_and_none_of_its_hosts_is_punished() -> None:
    machines = [
        {"name": "machine", "share": 9, "flops_per_s": 1e12},
        {"name": "broken", "share": 1, "flops_per_s": 1e12},
    ]
    buggy = {"name": "buggy", "share": 0.1, "kind": "buggy", "wrong_rate": 0.33, "devices": ["broken"]}
    honest = {**HONEST, "share": 0.9, "devices": ["machine"]}
    tally = outcome(scenario(devices=machines, populations=[honest, buggy], days=5))
    assert tally.suspended_classes == {"broken"}
    assert tally.populations["buggy"].faults > 100
    assert tally.populations["buggy"].forgiven == tally.populations["buggy"].faults
    assert tally.populations["buggy"].wrong_standing <= 1


def test_bold_cheats_do_not_get_their_class_suspended() -> None:
    bold = {"name": "bold", "share": 0.1, "kind": "independent", "wrong_rate": 1.0}
    tally = outcome(scenario(bold, days=5))
    assert tally.suspended_classes == set()
    assert tally.populations["bold"].results < 50 * tally.populations["bold"].hosts


TAIL = {
    "days": 4,
    "hosts": 100,
    "devices": [
        {"name": "slow", "share": 7, "flops_per_s": 2e11, "spread": 0.5},
        {"name": "fast", "share": 3, "flops_per_s": 4e12, "spread": 0.5},
    ],
    "availability": {"on_hours": 10, "off_hours": 10},
    "campaigns": [{"name": "book", "units": 4000, "unit_flops": 2e14}],
}


def test_copies_of_the_last_units_end_a_campaign_near_the_fluid_bound() -> None:
    with_copies, without = (scenario(SLEEPERS, **TAIL, tails={"copies": copies}) for copies in (True, False))
    copied, plain = of_policy(with_copies, outcome(with_copies)), of_policy(without, outcome(without))
    assert copied["accepted"] == 4000
    assert 1.0 <= copied["makespan_to_fluid"] <= 1.3 < plain["makespan_to_fluid"]
    assert 0.0 < copied["waste_of_copies"] <= copied["waste"] <= 0.05


@pytest.mark.parametrize("policy", list(PolicyName))
def test_a_campaign_ends_whatever_leaves_or_goes_off(policy: PolicyName) -> None:
    """Every unit is accepted once, and nothing stays provisional, under each policy."""
    small = [{"name": "book", "units": 300, "unit_flops": 3.6e14}]
    busy = scenario(
        FLAKY, days=6, hosts=40, campaigns=small, lifetime_days=1.0, availability={"on_hours": 3, "off_hours": 3}
    )
    tally = outcome(busy, policy)
    assert tally.accepted == 300
    assert tally.provisional == 0
    assert tally.expired > 0
    assert sum(day.accepted for day in tally.days) == tally.accepted + tally.retracted
    assert math.isclose(tally.accepted_flops, 300 * 3.6e14, rel_tol=0.2)


def test_a_stricter_rule_costs_more_and_lets_less_pass() -> None:
    strict = TrustRule().at_least(epsilon=2e-4)
    keys = {"epsilon": strict.epsilon, "audits_min": strict.audits_min}
    mild_one = outcome(scenario(PATIENT, days=20, hosts=80))
    strict_one = outcome(scenario(PATIENT, days=20, hosts=80, trust=keys))
    assert wrong_share(strict_one) < wrong_share(mild_one)
    assert strict_one.audits > mild_one.audits
