"""Two reports that differ where two are wanted: the arbiter hears both, and no third host is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memgrid.kinds.part import Part
from memgrid.units import AccountId, Reason, ReasonCode
from memgrid_coordinator.lifecycle import LEASE_MOVES, UNIT_MOVES, LeaseState, UnitState, after
from memgrid_coordinator.policy import life
from memgrid_coordinator.policy.life import Changed, Outcome, UploadFailed, UploadVerified
from memgrid_coordinator.records import Lease, Unit
from tests.unit.test_life import UNIT, all_differ, lease, reported

PART = Part(pieces=(16, 17), layer=2)
WRONG = Reason(code=ReasonCode.REPLAY_DIFFERS, text="V median 4.1e-02, allowed 2.3e-02")


class Told:
    """A unit and its leases as the steps leave them."""

    def __init__(self, leases: list[Lease], unit: Unit = UNIT) -> None:
        self.leases, self.unit = leases, unit

    def step(self, event: life.UnitEvent, part: Part | None = PART) -> Outcome:
        outcome = life.step(self.unit, self.leases, event, all_differ(self.leases, part))
        for move in outcome.unit_moves:
            self.unit = replace(self.unit, state=after(UNIT_MOVES, self.unit.state, move))
        moves = {move.lease_id: move for move in outcome.lease_moves}
        self.leases = [
            replace(
                one,
                state=after(LEASE_MOVES, one.state, moves[one.lease_id].move) if one.lease_id in moves else one.state,
                disputed=outcome.disputed.get(one.lease_id, one.disputed),
            )
            for one in self.leases
        ]
        return outcome

    def states(self) -> dict[str, LeaseState]:
        return {one.lease_id: one.state for one in self.leases}

    @property
    def other(self) -> Lease:
        """Of the two that differ, the one that has not been asked for its bytes."""
        return next(one for one in self.leases if one.state is LeaseState.REPORTED)


def disputed() -> tuple[Told, Lease]:
    told = Told([reported(1, "a"), reported(2, "b")])
    first = told.step(Changed()).order_from
    return told, next(one for one in told.leases if one.lease_id == first)


def test_two_that_differ_are_looked_at_and_no_third_is_asked() -> None:
    told = Told([reported(1, "a"), reported(2, "b")])
    outcome = told.step(Changed())
    assert outcome.unit_moves == ("agree",) and outcome.vacancies == 0
    assert outcome.disputed == {"lease1": PART, "lease2": PART}
    (move,) = outcome.lease_moves
    assert (move.lease_id, move.reason.code) == (outcome.order_from, ReasonCode.DISPUTED)


def test_who_reports_first_does_not_decide_whose_bytes_come_first() -> None:
    one, other = reported(1, "a"), reported(2, "b")
    swapped = [replace(other, fence=1), replace(one, fence=2)]
    known = all_differ([one, other], PART)
    orders = {life.step(UNIT, leases, Changed(), known).order_from for leases in ([one, other], swapped)}
    assert len(orders) == 1


def test_a_good_answer_does_not_condemn_the_other_unheard() -> None:
    told, first = disputed()
    other = told.other.lease_id
    outcome = told.step(UploadVerified(lease_id=first.lease_id))
    assert outcome.unit_moves == () and outcome.order_from == other
    outcome = told.step(UploadVerified(lease_id=other))
    assert outcome.unit_moves == ("accept",) and outcome.result == other
    assert set(told.states().values()) == {LeaseState.AGREED}, "both were near enough to the truth"


def test_the_one_that_was_heard_stands_when_the_other_is_wrong() -> None:
    told, first = disputed()
    other = told.other.lease_id
    told.step(UploadVerified(lease_id=first.lease_id))
    outcome = told.step(UploadFailed(lease_id=other, reason=WRONG))
    assert outcome.unit_moves == ("accept",) and outcome.result == first.lease_id
    assert told.states() == {first.lease_id: LeaseState.AGREED, other: LeaseState.REJECTED}


def test_the_other_is_heard_when_the_first_is_wrong() -> None:
    told, first = disputed()
    other = told.other.lease_id
    outcome = told.step(UploadFailed(lease_id=first.lease_id, reason=WRONG))
    assert outcome.unit_moves == () and outcome.order_from == other
    outcome = told.step(UploadVerified(lease_id=other))
    assert outcome.unit_moves == ("accept",) and outcome.result == other
    assert told.states() == {first.lease_id: LeaseState.REJECTED, other: LeaseState.AGREED}


def test_the_unit_is_open_again_when_both_are_wrong() -> None:
    told, first = disputed()
    other = told.other.lease_id
    told.step(UploadFailed(lease_id=first.lease_id, reason=WRONG))
    outcome = told.step(UploadFailed(lease_id=other, reason=WRONG))
    assert outcome.unit_moves == ("reopen",) and outcome.vacancies == 2
    assert set(told.states().values()) == {LeaseState.REJECTED}


@pytest.mark.parametrize("part", [PART, None])
def test_what_was_heard_once_is_not_heard_again(part: Part | None) -> None:
    """A recalled result leaves reports whose dispute was decided: a third host has to say."""
    leases = [replace(reported(1, "a"), disputed=PART), replace(reported(2, "b"), disputed=PART)]
    assert Told(leases).step(Changed(), part) == Outcome(vacancies=1)


def test_a_third_host_decides_where_the_reports_do_not_tell_the_piece() -> None:
    assert Told([reported(1, "a"), reported(2, "b")]).step(Changed(), None) == Outcome(vacancies=1)


def test_where_three_are_wanted_three_compute_it() -> None:
    unit = replace(UNIT, min_replicas=3)
    assert Told([reported(1, "a"), reported(2, "b")], unit).step(Changed()) == Outcome(vacancies=1)


def test_one_account_does_not_dispute_with_itself() -> None:
    twice = replace(reported(2, "b"), account_id=AccountId("account1"))
    assert Told([reported(1, "a"), twice]).step(Changed()) == Outcome(vacancies=1)


def test_two_are_heard_even_where_no_third_may_be_asked() -> None:
    told = Told([reported(1, "a"), reported(2, "b")], replace(UNIT, max_replicas=2))
    assert told.step(Changed()).unit_moves == ("agree",)


def test_a_third_under_way_goes_on_and_is_judged_by_what_is_accepted() -> None:
    told = Told([reported(1, "a"), reported(2, "b"), lease(3)])
    first = told.step(Changed()).order_from
    assert first is not None
    told.leases = [replace(reported(3, "c")) if one.fence == 3 else one for one in told.leases]
    other = next(one.lease_id for one in told.leases if one.disputed and one.lease_id != first)
    assert told.step(UploadVerified(lease_id=first)).order_from == other
    assert told.step(UploadVerified(lease_id=other)).unit_moves == ("accept",)
    assert told.unit.state is UnitState.ACCEPTED and told.states()["lease3"] is LeaseState.REPORTED
