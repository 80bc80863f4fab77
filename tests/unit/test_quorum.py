"""When reports agree: majority, medoid, and never the first that came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of
from memgrid.kinds.kind import Difference
from memgrid.units import AccountId, ComputeDtype, LeaseId
from memgrid_coordinator.policy.quorum import Agreed, Hopeless, Pair, Pending, settle
from memgrid_coordinator.records import ReplicaClaim

LIMIT = 1.0


def claim(name: str, value: float, account: str | None = None) -> ReplicaClaim:
    """A report whose whole output is one number."""
    return ReplicaClaim(
        lease_id=LeaseId(name),
        account_id=AccountId(account or name),
        output_digest=digest_of(repr(value).encode()),
        sketch=b"",
        compute_dtype=ComputeDtype.FLOAT32,
    )


def differences(values: dict[str, float]) -> dict[Pair, Difference]:
    """Outputs agree when their numbers are at most LIMIT apart."""
    known = {}
    for one, a in values.items():
        for other, b in values.items():
            if one < other:
                distance = abs(a - b)
                text = f"off by {distance}" if distance > LIMIT else None
                known[frozenset((LeaseId(one), LeaseId(other)))] = Difference(distance=distance, exceeded=text)
    return known


def judge(values: dict[str, float], *, min_replicas: int = 2, max_replicas: int = 5) -> object:
    claims = [claim(name, value) for name, value in values.items()]
    return settle(claims, differences(values), min_replicas=min_replicas, max_replicas=max_replicas)


def test_one_report_is_not_enough_for_a_quorum_of_two() -> None:
    assert judge({"a": 0.0}) == Pending(reports_wanted=1)


def test_equal_digests_agree_without_a_comparison() -> None:
    verdict = settle([claim("a", 1.0), claim("b", 1.0)], {}, min_replicas=2, max_replicas=5)
    assert isinstance(verdict, Agreed)
    assert set(verdict.agreed) == {"a", "b"}


def test_different_digests_ask_for_a_comparison_first() -> None:
    verdict = settle([claim("a", 1.0), claim("b", 1.1)], {}, min_replicas=2, max_replicas=5)
    assert verdict == Pending(compare=(frozenset((LeaseId("a"), LeaseId("b"))),))


def test_disagreement_calls_a_third() -> None:
    assert judge({"a": 0.0, "b": 9.0}) == Pending(reports_wanted=1)


def test_the_odd_one_is_rejected_and_told_what_it_exceeded() -> None:
    verdict = judge({"cheat": 9.0, "b": 0.0, "c": 0.5})
    assert isinstance(verdict, Agreed)
    assert set(verdict.agreed) == {"b", "c"}
    assert verdict.rejected == (("cheat", "off by 9.0"),)


def test_the_medoid_stands_for_all_not_the_first_that_came() -> None:
    verdict = judge({"edge": 0.0, "middle": 0.9, "other": 1.8}, min_replicas=3)
    assert isinstance(verdict, Agreed)
    assert verdict.medoid == "middle"
    assert set(verdict.agreed) == {"edge", "middle", "other"}


def test_two_against_two_is_no_majority() -> None:
    assert judge({"a": 0.0, "b": 0.1, "c": 9.0, "d": 9.1}) == Pending(reports_wanted=1)


def test_it_is_hopeless_when_nobody_agrees_and_the_campaign_pays_for_no_more() -> None:
    assert judge({"a": 0.0, "b": 9.0, "c": 18.0}, max_replicas=3) == Hopeless()


def test_two_hosts_of_one_account_are_one_voice() -> None:
    claims = [claim("a", 0.0, "mallory"), claim("b", 0.0, "mallory")]
    assert settle(claims, {}, min_replicas=2, max_replicas=5) == Pending(reports_wanted=1)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_whoever_is_rejected_is_outside_the_tolerance_of_the_medoid(values: list[float], quorum: int) -> None:
    named = {f"host{index}": value for index, value in enumerate(values)}
    verdict = judge(named, min_replicas=quorum, max_replicas=7)
    if not isinstance(verdict, Agreed):
        return
    assert len(verdict.agreed) >= quorum
    assert 2 * len(verdict.agreed) > len(values)
    centre = named[verdict.medoid]
    assert all(abs(named[lease_id] - centre) <= LIMIT for lease_id in verdict.agreed)
    assert all(abs(named[lease_id] - centre) > LIMIT for lease_id, _ in verdict.rejected)
    assert len(verdict.agreed) + len(verdict.rejected) == len(values)


@given(st.permutations(["a", "b", "c", "d", "e"]), st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_the_order_in_which_reports_came_changes_no_verdict(order: list[str], values: list[int]) -> None:
    named = dict(zip("abcde", map(float, values), strict=True))
    first = judge(named)
    again = judge({name: named[name] for name in order})
    if isinstance(first, Agreed):
        assert isinstance(again, Agreed)
        assert named[first.medoid] == named[again.medoid]
        assert set(first.agreed) == set(again.agreed)
    else:
        assert first == again
