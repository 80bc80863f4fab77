"""A worker computes for as much of the time as it is told to: the arithmetic on a clock that is driven by hand."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.clock import ManualClock, SystemClock
from memgrid_volunteer.kinds.job import Job, PaceLine
from memgrid_volunteer.kinds.pace import SHORTEST_REST_S, Pace, rest_s

DUTIES = st.floats(min_value=0.05, max_value=0.95)
PIECES_S = st.lists(st.floats(min_value=1e-4, max_value=5.0), min_size=1, max_size=60)


class Sleeping(threading.Condition):
    """Waiting moves the clock, as late as told; whoever waits without limit is let go by the next of `orders`."""

    def __init__(self, clock: ManualClock, late_s: float = 0.0) -> None:
        super().__init__(threading.RLock())
        self.clock, self.late_s = clock, late_s
        self.orders: list[tuple[float, float]] = []
        self.pace: Pace | None = None

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.clock.advance(timedelta(seconds=timeout + self.late_s))
            return False
        assert self.pace is not None
        held_s, duty = self.orders.pop(0)
        self.clock.advance(timedelta(seconds=held_s))
        self.pace.set(duty)
        return True


def made(late_s: float = 0.0) -> tuple[Pace, ManualClock, Sleeping]:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    sleeping = Sleeping(clock, late_s)
    sleeping.pace = Pace(clock, sleeping)
    return sleeping.pace, clock, sleeping


def work(clock: ManualClock, seconds: float) -> None:
    clock.advance(timedelta(seconds=seconds))


@given(duty=DUTIES, pieces_s=PIECES_S, late_s=st.floats(min_value=0, max_value=0.01))
def test_over_any_stretch_the_duty_is_kept(duty: float, pieces_s: list[float], late_s: float) -> None:
    pace, clock, _ = made(late_s)
    pace.set(duty)
    worked_s = rested_s = 0.0
    for piece_s in pieces_s:
        work(clock, piece_s)
        worked_s += piece_s
        rested_s += pace.rest()
        owed_s = worked_s * (1 - duty) / duty - rested_s
        # Never ahead by more than a rest too short to be taken, never behind by more than what is forgiven.
        assert owed_s <= SHORTEST_REST_S + 1e-4
        assert owed_s >= -(0.1 + late_s * len(pieces_s)) - 1e-4


@given(pieces_s=PIECES_S)
def test_at_full_speed_nobody_rests(pieces_s: list[float]) -> None:
    pace, clock, _ = made()
    for piece_s in pieces_s:
        work(clock, piece_s)
        assert pace.rest() == 0.0


@given(held_s=st.floats(min_value=0.1, max_value=1e5), duty=DUTIES, piece_s=st.floats(min_value=0.2, max_value=5))
def test_a_long_hold_is_not_made_up_for(held_s: float, duty: float, piece_s: float) -> None:
    pace, clock, sleeping = made()
    pace.set(0.0)
    sleeping.orders.append((held_s, duty))
    work(clock, piece_s)
    assert pace.rest() >= held_s - 1e-4
    work(clock, piece_s)
    assert pace.rest() >= rest_s(piece_s, duty) - 0.1 - SHORTEST_REST_S - 1e-4


def test_a_hold_counts_neither_as_computing_nor_as_the_units_time_and_a_rest_only_as_the_latter() -> None:
    pace, clock, sleeping = made()
    work(clock, 7.0)
    pace.begin()
    pace.set(0.5)
    work(clock, 2.0)
    pace.rest()
    assert (pace.computed_s, pace.spent_s) == pytest.approx((2.0, 4.0))
    pace.set(0.0)
    sleeping.orders.append((100.0, 1.0))
    work(clock, 1.0)
    pace.rest()
    assert (pace.computed_s, pace.spent_s) == pytest.approx((3.0, 5.0))
    pace.begin(30.0)
    work(clock, 1.0)
    assert (pace.computed_s, pace.spent_s) == pytest.approx((31.0, 31.0))


def test_a_unit_that_comes_while_it_is_to_hold_waits_for_its_first_micro_batch() -> None:
    pace, clock, sleeping = made()
    pace.set(0.0)
    sleeping.orders.append((100.0, 1.0))
    pace.begin()
    work(clock, 2.0)
    assert sleeping.orders == []
    assert (pace.computed_s, pace.spent_s) == pytest.approx((2.0, 2.0))


def test_a_changed_pace_ends_a_hold_in_another_thread() -> None:
    pace = Pace(SystemClock())
    pace.set(0.0)
    resting = threading.Thread(target=pace.rest, daemon=True)
    resting.start()
    pace.set(0.0)
    assert resting.is_alive()
    pace.set(1.0)
    resting.join(timeout=10)
    assert not resting.is_alive()


@pytest.mark.parametrize("line", [b"{}\n", b"[]\n", b'{"pace": {"duty": NaN}}\n', b'{"pace": 1}\n', b"not json\n"])
def test_other_lines_are_no_pace(line: bytes) -> None:
    assert PaceLine.from_line(line) is None


def test_a_job_is_no_pace_and_a_duty_stays_within_bounds() -> None:
    job = Job(kind="prefill", unit_dir=Path("a"), model_dir=Path("b"), out_dir=Path("c"))
    assert PaceLine.from_line(job.to_line()) is None
    assert PaceLine.from_line(b'{"pace": {"duty": 7}}') == PaceLine(duty=1.0)
