"""Every lease is on the desk once, and what is given back is told until it has been heard."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of
from memgrid.units import LeaseId, LeaseOffer, ModelFiles, Reason, ReasonCode, UnitKey
from memgrid_volunteer.desk import AHEAD_UNITS_MAX, Desk, Stage, wanted

MODEL = ModelFiles(digest=digest_of(b"model"), files=())
PAUSED = Reason(code=ReasonCode.OWNER_PAUSED)


def offer(lease_id: str, estimate_s: float = 20.0) -> LeaseOffer:
    return LeaseOffer(
        lease_id=LeaseId(lease_id),
        fence=7,
        unit_key=UnitKey("0" * 64),
        spec=b"",
        model=MODEL.digest,
        inputs=(),
        deadline_at=datetime(2026, 1, 1, tzinfo=UTC),
        estimate_s=estimate_s,
    )


def test_an_offer_that_comes_twice_lies_there_once() -> None:
    desk = Desk()
    assert desk.take(offer("a"), MODEL) and not desk.take(offer("a"), MODEL)
    assert len(desk) == 1


def test_a_lease_on_its_way_back_is_not_taken_again() -> None:
    # The coordinator, not having heard of it yet, offers it once more.
    desk = Desk()
    desk.take(offer("a"), MODEL)
    desk.give_back(LeaseId("a"), PAUSED)
    assert not desk.take(offer("a"), MODEL)
    desk.told(desk.released())
    assert desk.take(offer("a"), MODEL)


def test_what_is_given_back_is_told_until_it_has_been_heard() -> None:
    desk = Desk()
    for name in ("a", "b"):
        desk.take(offer(name), MODEL)
    assert desk.give_all_back(PAUSED) == 2 and desk.give_all_back(PAUSED) == 0
    first = desk.released()
    assert [(release.lease_id, release.fence) for release in first] == [("a", 7), ("b", 7)]
    desk.told(first[:1])
    assert [release.lease_id for release in desk.released()] == ["b"]


def test_progress_is_a_guess_that_never_claims_to_be_through() -> None:
    desk = Desk()
    desk.take(offer("a", estimate_s=10), MODEL)
    assert desk.held(100.0)[0].progress == 0
    held = desk.find(LeaseId("a"))
    assert held is not None
    held.stage, held.began_s = Stage.RUNNING, 100.0
    assert [desk.held(now_s)[0].progress for now_s in (100.0, 105.0, 1000.0)] == [0.0, 0.5, 0.95]


@given(st.integers(0, 20), st.floats(0, 1000))
def test_the_queue_stays_short(held: int, held_s: float) -> None:
    more = wanted(held, held_s)
    assert more >= 0 and (held + more <= max(held, AHEAD_UNITS_MAX))
    assert held + more >= 2


def test_long_units_are_queued_two_at_a_time_and_short_ones_in_handfuls() -> None:
    assert (wanted(0, 0), wanted(1, 20), wanted(2, 40), wanted(2, 0.1)) == (2, 1, 0, 6)
