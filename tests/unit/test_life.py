"""The life of a unit: every outcome is a legal move, and every unit that can end, ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memgrid.digest import Digest, digest_of
from memgrid.kinds.kind import Difference
from memgrid.kinds.part import Part
from memgrid.units import AccountId, ComputeDtype, HostId, LeaseId, Output, Reason, ReasonCode, UnitKey, WorkFacts
from memgrid_coordinator.lifecycle import (
    ENDED_UNITS,
    HAVE_RESULTS,
    LEASE_MOVES,
    UNIT_MOVES,
    LeaseState,
    UnitState,
    after,
)
from memgrid_coordinator.policy import latecomers, life
from memgrid_coordinator.policy.life import Changed, Outcome, UploadFailed, UploadVerified, Withdrawn
from memgrid_coordinator.policy.quorum import Pair
from memgrid_coordinator.records import Lease, Unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNIT = Unit(
    unit_id=1,
    key=UnitKey("0" * 64),
    kind="prefill",
    state=UnitState.OPEN,
    spec=b"",
    model=Digest("sha256:" + "0" * 64),
    token_count=16,
    flops=1000,
    priority=0,
    min_replicas=2,
    max_replicas=5,
    parent_id=None,
    fence=0,
    failures=0,
    output_digest=None,
    output_bytes=0,
    accepted_lease_id=None,
    opened_at=NOW,
)


def lease(number: int) -> Lease:
    return Lease(
        lease_id=LeaseId(f"lease{number}"),
        unit_id=1,
        unit_key=UNIT.key,
        host_id=HostId(f"host{number}"),
        account_id=AccountId(f"account{number}"),
        fence=number,
        state=LeaseState.LEASED,
        granted_at=NOW,
        deadline_at=NOW,
        reported_at=None,
        outputs=(),
        sketch=b"",
        facts=None,
        reason=None,
    )


def reported(number: int, answer: str) -> Lease:
    facts = WorkFacts(
        tokens=16,
        compute_s=1,
        device_kind="cpu",
        numerics_class="x",
        compute_dtype=ComputeDtype.FLOAT32,
        torch_version="",
    )
    outputs = (Output(name="kv.safetensors", digest=digest_of(answer.encode()), size_bytes=1),)
    return replace(lease(number), state=LeaseState.REPORTED, reported_at=NOW, outputs=outputs, facts=facts)


def all_differ(leases: list[Lease], part: Part | None = None) -> dict[Pair, Difference]:
    """Outputs with other bytes are other outputs; `part` is where the reports tell that they differ."""
    names = [one.lease_id for one in leases]
    apart = Difference(distance=9.0, exceeded="V median 0.3, allowed 0.0003", part=part)
    return {frozenset((one, other)): apart for one in names for other in names if one != other}


def test_a_report_on_its_own_opens_one_more_vacancy() -> None:
    assert life.step(UNIT, [reported(1, "a")], Changed(), {}) == Outcome(vacancies=1)


def test_a_lease_under_way_fills_the_vacancy() -> None:
    assert life.step(UNIT, [reported(1, "a"), lease(2)], Changed(), {}) == Outcome(vacancies=0)


def test_agreement_orders_one_upload_only() -> None:
    outcome = life.step(UNIT, [reported(1, "a"), reported(2, "a")], Changed(), {})
    assert outcome.unit_moves == ("agree",)
    assert outcome.order_from == "lease1"
    assert [move.move for move in outcome.lease_moves] == ["agree", "agree"]


def test_the_cheat_is_rejected_when_the_third_reports() -> None:
    leases = [reported(1, "cheat"), reported(2, "a"), reported(3, "a")]
    outcome = life.step(UNIT, leases, Changed(), all_differ(leases))
    moves = {move.lease_id: (move.move, move.reason.code) for move in outcome.lease_moves}
    assert moves["lease1"] == ("reject", ReasonCode.DISAGREES)
    assert outcome.order_from in ("lease2", "lease3")


def test_a_lost_upload_is_asked_of_the_other_replica() -> None:
    unit = replace(UNIT, state=UnitState.CHECKING)
    agreed = [replace(reported(number, "a"), state=LeaseState.AGREED) for number in (1, 2)]
    missing = UploadFailed(lease_id=LeaseId("lease1"), reason=Reason(code=ReasonCode.UPLOAD_MISSING))
    outcome = life.step(unit, agreed, missing, {})
    assert outcome.order_from == "lease2"
    assert outcome.unit_moves == ()


def test_a_false_upload_rejects_its_host_and_reopens_the_unit() -> None:
    unit = replace(UNIT, state=UnitState.CHECKING)
    agreed = [replace(reported(number, "a"), state=LeaseState.AGREED) for number in (1, 2)]
    false = UploadFailed(lease_id=LeaseId("lease1"), reason=Reason(code=ReasonCode.SKETCH_MISMATCH))
    outcome = life.step(unit, agreed, false, {})
    assert outcome.unit_moves == ("reopen",)
    assert {move.lease_id: move.move for move in outcome.lease_moves} == {"lease1": "reject", "lease2": "unagree"}
    assert outcome.vacancies == 1


def test_a_unit_that_nobody_can_do_is_given_up() -> None:
    outcome = life.step(replace(UNIT, failures=life.FAILURES_MAX), [], Changed(), {})
    assert outcome.unit_moves == ("fail",)
    assert outcome.reason is not None
    assert outcome.reason.code is ReasonCode.TOO_MANY_FAILURES


def test_a_late_report_is_judged_by_the_accepted_result() -> None:
    accepted = replace(reported(1, "a"), state=LeaseState.AGREED)
    unit = replace(UNIT, state=UnitState.ACCEPTED, accepted_lease_id=accepted.lease_id)
    leases = [accepted, reported(3, "a"), reported(4, "other")]
    outcome = life.step(unit, leases, Changed(), all_differ(leases))
    assert {move.lease_id: move.move for move in outcome.lease_moves} == {"lease3": "agree", "lease4": "reject"}


def given_back(number: int, code: ReasonCode, account: str | None = None) -> Lease:
    reason = Reason(code=code, text="step 6: loss nan")
    released = replace(lease(number), state=LeaseState.RELEASED, reason=reason)
    return replace(released, account_id=AccountId(account)) if account else released


@pytest.mark.parametrize("code", sorted(life.VERDICTS_ON_THE_UNIT))
def test_what_two_accounts_say_of_a_unit_is_believed(code: ReasonCode) -> None:
    alone = life.step(UNIT, [given_back(1, code)], Changed(), {})
    assert alone == Outcome(vacancies=2), "one may be wrong, or lie"
    both = life.step(UNIT, [given_back(1, code), given_back(2, code)], Changed(), {})
    assert both.unit_moves == ("fail",)
    assert both.reason == Reason(code=code, text="step 6: loss nan")


def test_one_account_is_believed_when_it_says_so_again_and_again() -> None:
    said = [given_back(number, ReasonCode.DIVERGED, "only") for number in range(life.SAME_VERDICT_MAX)]
    assert life.step(UNIT, said[1:], Changed(), {}).unit_moves == ()
    assert life.step(UNIT, said, Changed(), {}).unit_moves == ("fail",)


def test_what_hosts_say_of_themselves_is_no_verdict_on_the_unit() -> None:
    said = [given_back(number, ReasonCode.OUT_OF_MEMORY) for number in (1, 2, 3)]
    assert life.step(UNIT, said, Changed(), {}) == Outcome(vacancies=2)


def test_a_unit_that_lost_its_input_is_given_up() -> None:
    gone = Reason(code=ReasonCode.STATE_MISSING, text="its input state.safetensors is gone")
    outcome = life.step(UNIT, [lease(1), reported(2, "a")], life.Impossible(reason=gone), {})
    assert (outcome.unit_moves, outcome.reason) == (("fail",), gone)
    assert {move.lease_id: move.move for move in outcome.lease_moves} == {"lease1": "cancel"}, "the report is judged"


def test_a_withdrawn_lease_is_told_why() -> None:
    stale = Reason(code=ReasonCode.STALE_ROUND, text="round 4 has begun")
    outcome = life.step(UNIT, [lease(1)], Withdrawn(reason=stale), {})
    assert [move.reason for move in outcome.lease_moves] == [stale]


CANCELLED = replace(UNIT, state=UnitState.CANCELLED, reason=life.NOT_WANTED)


def moves_of(outcome: Outcome) -> dict[str, str]:
    assert outcome.unit_moves == (), "what ended stays ended"
    return {move.lease_id: move.move for move in outcome.lease_moves}


def test_what_agreed_before_a_unit_ended_is_judged_once_more() -> None:
    checking = replace(UNIT, state=UnitState.CHECKING)
    agreed = [replace(reported(number, "a"), state=LeaseState.AGREED) for number in (1, 2)]
    outcome = life.step(checking, [*agreed, lease(3)], Withdrawn(), {})
    assert outcome.unit_moves == ("cancel",)
    moves = {move.lease_id: move.move for move in outcome.lease_moves}
    assert moves == {"lease1": "unagree", "lease2": "unagree", "lease3": "cancel"}


def test_two_reports_on_a_cancelled_unit_confirm_each_other() -> None:
    leases = [reported(1, "a"), reported(2, "a"), reported(3, "cheat")]
    unknown = life.step(CANCELLED, leases, Changed(), {})
    assert unknown.compare and not unknown.lease_moves
    outcome = life.step(CANCELLED, leases, Changed(), all_differ(leases))
    assert moves_of(outcome) == {"lease1": "agree", "lease2": "agree", "lease3": "reject"}


def test_one_account_does_not_confirm_itself() -> None:
    twice = [reported(1, "a"), replace(reported(2, "a"), account_id=AccountId("account1"))]
    assert moves_of(life.step(CANCELLED, twice, Changed(), {})) == {"lease1": "cancel", "lease2": "cancel"}


def test_a_lone_report_is_credited_when_its_host_is_believed_and_else_told_why_not() -> None:
    alone = [reported(1, "a")]
    believed = life.step(CANCELLED, alone, Changed(), {}, believed=frozenset({LeaseId("lease1")}))
    assert moves_of(believed) == {"lease1": "agree"}
    (told,) = life.step(CANCELLED, alone, Changed(), {}).lease_moves
    assert (told.move, told.reason.code) == ("cancel", ReasonCode.UNIT_SETTLED)
    assert "too new to be believed alone" in told.reason.text


def test_a_report_nobody_could_judge_is_credited_when_another_confirms_it() -> None:
    settled = Reason(code=ReasonCode.UNIT_SETTLED, text="too new")
    first = replace(reported(1, "a"), state=LeaseState.CANCELLED, reason=settled)
    assert moves_of(life.step(CANCELLED, [first, reported(2, "a")], Changed(), {})) == {
        "lease1": "agree",
        "lease2": "agree",
    }
    paid = replace(first, reason=Reason(code=ReasonCode.AGREES))
    assert moves_of(life.step(CANCELLED, [paid, reported(2, "a")], Changed(), {})) == {"lease2": "cancel"}


def test_an_account_that_did_a_unit_twice_is_paid_once() -> None:
    """Undecided in an earlier life of the unit, done again in the next."""
    settled = Reason(code=ReasonCode.UNIT_SETTLED)
    first = replace(reported(1, "a"), state=LeaseState.CANCELLED, reason=settled)
    again = replace(reported(2, "a"), account_id=first.account_id)
    outcome = life.step(CANCELLED, [first, again, reported(3, "a")], Changed(), {})
    assert moves_of(outcome) == {"lease2": "agree", "lease3": "agree"}


def test_contradicting_reports_are_not_believed_where_that_ended_the_unit() -> None:
    reason = Reason(code=ReasonCode.NO_AGREEMENT, text="5 reports and no majority among them")
    failed = replace(UNIT, state=UnitState.FAILED, reason=reason)
    leases = [reported(1, "a"), reported(2, "b")]
    everybody = frozenset(one.lease_id for one in leases)
    outcome = life.step(failed, leases, Changed(), all_differ(leases), believed=everybody)
    assert [(move.move, move.reason) for move in outcome.lease_moves] == [("cancel", reason)] * 2


LATER = NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    ("changed", "now", "expected"),
    [
        ({}, NOW, True),
        ({}, LATER, True),
        ({}, LATER + timedelta(seconds=1), False),
        ({"state": LeaseState.EXPIRED}, NOW, False),
        ({"state": LeaseState.RELEASED}, NOW, False),
        ({"reported_at": NOW}, NOW, False),
        ({"reason": Reason(code=ReasonCode.BANNED)}, NOW, False),
    ],
)
def test_a_lease_the_grid_ended_may_be_reported_until_its_deadline(
    changed: dict[str, Any], now: datetime, expected: bool
) -> None:
    mine = replace(lease(1), state=LeaseState.CANCELLED, reason=life.NOT_WANTED, deadline_at=LATER)
    mine = replace(mine, **changed)
    assert latecomers.is_still_taken(mine, CANCELLED, [mine, lease(2)], now) is expected
    again = replace(lease(3), account_id=mine.account_id)
    assert not latecomers.is_still_taken(mine, CANCELLED, [mine, again], now), "one account is one voice"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"opened_at": LATER}, True),
        ({"state": UnitState.WAITING}, True),
        ({"parent_id": 7}, True),
        ({"parent_id": 7, "opened_at": LATER}, False),
        ({"parent_id": 7, "state": UnitState.WAITING}, False),
    ],
)
def test_a_lease_is_over_when_what_it_continues_is_another_now(changed: dict[str, Any], expected: bool) -> None:
    mine = replace(lease(1), state=LeaseState.CANCELLED, reason=life.SETTLED, deadline_at=LATER)
    assert latecomers.is_still_taken(mine, replace(UNIT, **changed), [mine], LATER) is expected
    orphaned = replace(mine, reason=life.ORPHANED)
    assert not latecomers.is_still_taken(orphaned, replace(UNIT, **changed), [orphaned], LATER)


def test_reports_agree_only_when_every_file_does() -> None:
    one, other = reported(1, "a"), reported(2, "a")
    extra = Output(name="trace.json", digest=digest_of(b"trace"), size_bytes=1)
    wrong = replace(extra, digest=digest_of(b"another"))
    whole = replace(one, outputs=(*one.outputs, extra))
    assert life.claim_of(one).output_digest == one.outputs[0].digest
    assert life.claim_of(whole) == replace(
        life.claim_of(replace(other, outputs=whole.outputs)), lease_id=whole.lease_id, account_id=whole.account_id
    )
    digests = {life.result_digest(outputs) for outputs in (whole.outputs, (*one.outputs, wrong), one.outputs)}
    assert len(digests) == 3


PART = Part(pieces=(0, 1), layer=3)


class UnitHistory(RuleBasedStateMachine):
    """Any order of grants, reports, expiries and uploads; the tables of moves and the promises must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = UNIT
        self.leases: list[Lease] = []
        self.vacancies = 2
        self.ordered: LeaseId | None = None
        self.tried: set[LeaseId] = set()
        self.believed: set[LeaseId] = set()
        self.paid: list[LeaseId] = []
        self.life = 0
        self.paid_in: set[tuple[AccountId, int]] = set()
        self.recalls = 0
        self.part: Part | None = None

    @initialize(is_narrowed=st.booleans())
    def begin(self, is_narrowed: bool) -> None:
        """Some reports tell where they differ; of others only a third host can decide."""
        self.part = PART if is_narrowed else None

    def _known(self) -> dict[Pair, Difference]:
        return all_differ(self.leases, self.part)

    def _apply(self, event: life.UnitEvent) -> None:
        outcome = self._step(event)
        assert not outcome.compare, "everything has been compared"
        for move in outcome.unit_moves:
            self.unit = replace(self.unit, state=after(UNIT_MOVES, self.unit.state, move), reason=outcome.reason)
        by_id = {one.lease_id: one for one in self.leases}
        for move in outcome.lease_moves:
            old = by_id[move.lease_id]
            by_id[move.lease_id] = replace(old, state=after(LEASE_MOVES, old.state, move.move), reason=move.reason)
        for lease_id, part in outcome.disputed.items():
            by_id[lease_id] = replace(by_id[lease_id], disputed=part)
        self.leases = list(by_id.values())
        if outcome.result is not None:
            assert {"accept", "hold"} & set(outcome.unit_moves)
            assert by_id[outcome.result].state is LeaseState.AGREED
            self.unit = replace(self.unit, accepted_lease_id=outcome.result)
        self._pay(outcome)
        self.ordered = outcome.order_from if self.unit.state is UnitState.CHECKING else None
        self.vacancies = outcome.vacancies if self.unit.state is UnitState.OPEN else 0
        beside = {"hold", "accept"} & set(outcome.unit_moves) and any(
            one.state is LeaseState.REPORTED for one in self.leases
        )
        if beside or {"reopen", "recall", "cancel", "fail"} & set(outcome.unit_moves):
            self._apply(Changed())

    def _step(self, event: life.UnitEvent) -> Outcome:
        given = {"tried": frozenset(self.tried), "believed": frozenset(self.believed)}
        return life.step(self.unit, self.leases, event, self._known(), **given)

    def _pay(self, outcome: Outcome) -> None:
        """As the settling does: everybody who agreed when the unit is accepted, latecomers when they agree."""
        if "accept" in outcome.unit_moves:
            earned = [one.lease_id for one in self.leases if one.state is LeaseState.AGREED]
        elif self.unit.state in ENDED_UNITS:
            earned = [move.lease_id for move in outcome.lease_moves if move.move == "agree"]
        else:
            return
        accounts = {one.lease_id: one.account_id for one in self.leases}
        for lease_id in earned:
            assert lease_id not in self.paid, "one line a lease"
            assert (accounts[lease_id], self.life) not in self.paid_in, "an account is paid once for one result"
            self.paid.append(lease_id)
            self.paid_in.add((accounts[lease_id], self.life))

    def _leased(self) -> list[Lease]:
        return [one for one in self.leases if one.state is LeaseState.LEASED]

    @rule()
    def look_again(self) -> None:
        """Sweeps may run twice: a second look at the same state moves nothing."""
        outcome = self._step(Changed())
        assert outcome.unit_moves == ()
        assert outcome.vacancies == self.vacancies
        if self.unit.state is not UnitState.ACCEPTED:
            assert outcome.lease_moves == ()

    @precondition(lambda self: self.ordered is not None)
    @rule()
    def upload_unaudited(self) -> None:
        """Nobody looked at it: audits of its host decide."""
        assert self.ordered is not None
        if any(one.disputed for one in self.leases):
            return  # what is disputed is looked at
        self._apply(UploadVerified(lease_id=self.ordered, is_final=False))
        assert self.unit.state is UnitState.PROVISIONAL

    @precondition(lambda self: self.unit.state is UnitState.PROVISIONAL)
    @rule()
    def confirm(self) -> None:
        self._apply(life.Confirmed())
        assert self.unit.state is UnitState.ACCEPTED

    @precondition(lambda self: self.unit.state in HAVE_RESULTS and self.recalls < 3)
    @rule(is_wrong=st.booleans())
    def recall(self, is_wrong: bool) -> None:
        """An audit found it wrong, or (while provisional) its host at fault elsewhere."""
        self.recalls += 1
        is_wrong |= self.unit.state is UnitState.ACCEPTED
        result, was_paid = self.unit.accepted_lease_id, self.unit.state is UnitState.ACCEPTED
        self.life += was_paid
        self._apply(life.Recalled(reason=Reason(code=ReasonCode.REPLAY_DIFFERS), is_wrong=is_wrong))
        ended = next(one for one in self.leases if one.lease_id == result)
        assert ended.state is (LeaseState.REJECTED if is_wrong else LeaseState.CANCELLED)

    @precondition(lambda self: self.unit.state not in (UnitState.FAILED, UnitState.CANCELLED) and self.recalls < 3)
    @rule()
    def orphan_and_open(self) -> None:
        """What it continues was recalled, and came again: the unit begins anew, and nobody is to blame."""
        self.recalls += 1
        before = {one.lease_id: one.state for one in self.leases}
        self.life += 1
        self._apply(life.Orphaned())
        assert self.unit.state is UnitState.WAITING and not self._leased()
        newly = [one for one in self.leases if one.state is not before[one.lease_id]]
        assert all(one.state is LeaseState.CANCELLED for one in newly)
        self.unit = replace(self.unit, state=after(UNIT_MOVES, self.unit.state, "open"), accepted_lease_id=None)
        self.vacancies = self.unit.min_replicas

    @precondition(lambda self: self.vacancies > 0 and len(self.leases) < 30)
    @rule(is_believed=st.booleans())
    def grant(self, is_believed: bool) -> None:
        new = lease(len(self.leases) + 1)
        self.leases.append(new)
        self.believed |= {new.lease_id} if is_believed else set()
        self.vacancies -= 1

    @precondition(lambda self: self.unit.state in (UnitState.FAILED, UnitState.CANCELLED) and self.life < 3)
    @rule()
    def want_again(self) -> None:
        """A later campaign revives the unit: whoever agreed was paid and is let go."""
        self.life += 1
        self.unit = replace(self.unit, state=UnitState.OPEN, failures=0, reason=None)
        self.leases = [
            replace(one, state=LeaseState.CANCELLED) if one.state is LeaseState.AGREED else one for one in self.leases
        ]
        self._apply(Changed())

    def _ended_by_the_grid(self) -> list[Lease]:
        return [one for one in self.leases if latecomers.is_still_taken(one, self.unit, self.leases, NOW)]

    @precondition(lambda self: self._ended_by_the_grid())
    @rule(answer=st.sampled_from("aab"), which=st.integers(0, 9))
    def report_late(self, answer: str, which: int) -> None:
        some = self._ended_by_the_grid()
        chosen = some[which % len(some)]
        after(LEASE_MOVES, chosen.state, "report")
        answered = reported(chosen.fence, answer)
        self.leases = [answered if one.lease_id == chosen.lease_id else one for one in self.leases]
        if self.unit.state is not UnitState.CHECKING:
            self._apply(Changed())

    @precondition(lambda self: self._leased())
    @rule(answer=st.sampled_from("aab"), which=st.integers(0, 9))
    def report(self, answer: str, which: int) -> None:
        chosen = self._leased()[which % len(self._leased())]
        answered = reported(chosen.fence, answer)
        self.leases = [answered if one.lease_id == chosen.lease_id else one for one in self.leases]
        if self.unit.state is not UnitState.CHECKING:
            self._apply(Changed())

    @precondition(lambda self: self._leased() and self.unit.state is UnitState.OPEN)
    @rule(which=st.integers(0, 9))
    def expire(self, which: int) -> None:
        chosen = self._leased()[which % len(self._leased())]
        ended = replace(chosen, state=LeaseState.EXPIRED)
        self.leases = [ended if one.lease_id == chosen.lease_id else one for one in self.leases]
        self.unit = replace(self.unit, failures=self.unit.failures + 1)
        self._apply(Changed())

    @precondition(lambda self: self.ordered is not None)
    @rule()
    def upload(self) -> None:
        assert self.ordered is not None
        self._apply(UploadVerified(lease_id=self.ordered))

    @precondition(lambda self: self.ordered is not None)
    @rule(code=st.sampled_from([ReasonCode.UPLOAD_MISSING, ReasonCode.SKETCH_MISMATCH]))
    def lose_upload(self, code: ReasonCode) -> None:
        assert self.ordered is not None
        self.tried.add(self.ordered)
        self._apply(UploadFailed(lease_id=self.ordered, reason=Reason(code=code)))

    @precondition(lambda self: self.unit.state not in ENDED_UNITS)
    @rule(wanted=st.integers(0, 9))
    def withdraw(self, wanted: int) -> None:
        if wanted == 0:  # seldom: most histories should go on
            had_result = self.unit.state in HAVE_RESULTS
            self._apply(Withdrawn())
            assert had_result or self.unit.state is UnitState.CANCELLED

    @invariant()
    def an_open_unit_is_never_stuck(self) -> None:
        if self.unit.state is UnitState.OPEN:
            assert self.vacancies > 0 or self._leased(), "nobody holds it and nobody may take it"

    @invariant()
    def a_checking_unit_waits_for_somebody(self) -> None:
        if self.unit.state is UnitState.CHECKING:
            assert self.ordered is not None

    @invariant()
    def an_accepted_unit_has_a_quorum_behind_its_result(self) -> None:
        if self.unit.state is UnitState.ACCEPTED:
            result = next(one for one in self.leases if one.lease_id == self.unit.accepted_lease_id)
            agreed = {
                one.account_id
                for one in self.leases
                if one.state is LeaseState.AGREED and one.outputs == result.outputs
            }
            assert len(agreed) >= self.unit.min_replicas or result.disputed is not None

    @invariant()
    def work_within_its_lease_is_never_left_unjudged(self) -> None:
        if self.unit.state in ENDED_UNITS:
            assert not [one for one in self.leases if one.state is LeaseState.REPORTED]

    @invariant()
    def what_others_confirm_is_paid_even_when_the_unit_came_to_nothing(self) -> None:
        if self.unit.state in (UnitState.FAILED, UnitState.CANCELLED):
            standing = latecomers.standing(self.leases)
            answers = [one.outputs for one in standing]
            for one in standing:
                if 2 * answers.count(one.outputs) > len(answers) > 1:
                    assert one.lease_id in self.paid

    @invariant()
    def nobody_is_paid_on_their_own_word_unless_believed(self) -> None:
        for one in self.leases:
            if one.lease_id in self.paid and one.lease_id not in self.believed and one.disputed is None:
                others = [other for other in self.leases if other.facts is not None and other is not one]
                assert any(other.outputs == one.outputs for other in others)

    @invariant()
    def an_ended_unit_keeps_nobody_working_for_nothing(self) -> None:
        if self.unit.state in (UnitState.FAILED, UnitState.CANCELLED):
            assert not self._leased()


UnitHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestUnitHistory = UnitHistory.TestCase
