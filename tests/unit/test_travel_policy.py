"""What the grid takes of half-done units: never more than it has room for, and only what is news."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from memgrid.digest import digest_of
from memgrid.units import AccountId, CheckpointRef, HostId, LeaseId
from memgrid_coordinator.policy.travelling import Circumstances, TravelRule, is_wanted
from memgrid_coordinator.records import Checkpoint

NOW = datetime(2026, 5, 4, tzinfo=UTC)
SIZES = st.integers(0, 2000)
SHARES = st.floats(0, 1)
RULES = st.builds(
    TravelRule, each_bytes_max=SIZES, all_bytes_max=st.integers(0, 8000), keep=st.just(timedelta(hours=1))
)
REFS = st.builds(
    CheckpointRef,
    digest=st.sampled_from([digest_of(b"one"), digest_of(b"other")]),
    size_bytes=SIZES,
    progress=SHARES,
)


def kept(ref: CheckpointRef, received_at: datetime | None) -> Checkpoint:
    return Checkpoint(
        lease_id=LeaseId("former"),
        unit_id=1,
        host_id=HostId("host"),
        account_id=AccountId("account"),
        fence=1,
        digest=ref.digest,
        size_bytes=ref.size_bytes,
        progress=ref.progress,
        received_at=received_at,
        ends_at=NOW + timedelta(hours=1),
    )


KEPT = st.none() | st.builds(kept, REFS, st.none() | st.integers(-60, 60).map(lambda m: NOW + timedelta(minutes=m)))
AROUND = st.builds(Circumstances, unit_bytes_max=SIZES, kept=KEPT, account_bytes=SIZES, all_bytes=SIZES)


@given(REFS, AROUND, RULES)
def test_what_is_taken_fits_its_unit_its_account_and_the_grid(
    offered: CheckpointRef, around: Circumstances, rule: TravelRule
) -> None:
    if is_wanted(offered, NOW, around, rule):
        assert 0 < offered.size_bytes <= min(around.unit_bytes_max, rule.each_bytes_max)
        assert around.all_bytes + offered.size_bytes <= rule.all_bytes_max
        assert around.account_bytes + offered.size_bytes <= rule.all_bytes_max / 4
        assert offered.progress > 0


@given(REFS, AROUND, RULES)
def test_what_is_here_is_not_asked_for_again(offered: CheckpointRef, around: Circumstances, rule: TravelRule) -> None:
    same = replace(around, kept=kept(offered, NOW))
    assert not is_wanted(offered, NOW - timedelta(minutes=1), same, rule)
    assert not is_wanted(offered, NOW + timedelta(minutes=1), same, rule)


@given(REFS, REFS, AROUND, RULES)
def test_further_is_news_and_nothing_that_is_wanted_is_refused_for_being_further(
    offered: CheckpointRef, former: CheckpointRef, around: Circumstances, rule: TravelRule
) -> None:
    before = replace(around, kept=kept(former, NOW + timedelta(minutes=1)))
    taken = is_wanted(offered, NOW, before, rule)
    if taken:
        assert offered.progress > former.progress, "its host was never told of what is kept"
        assert is_wanted(replace(offered, progress=1.0), NOW, before, rule) or former.progress == 1.0
    elif offered.progress > former.progress:
        assert not is_wanted(offered, NOW, replace(around, kept=None), rule), "it is refused for its size alone"
