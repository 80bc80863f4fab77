"""Plots stay within their frame and say what they show, whatever the numbers."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from memgrid.charts import bars, columns, curve, line, nice_top, parts

START = datetime(2026, 1, 1, tzinfo=UTC)
NUMBERS = st.floats(0, 1e24, allow_nan=False)


def values_of(numbers: list[float]) -> list[tuple[datetime, float]]:
    return [(START + timedelta(hours=index), number) for index, number in enumerate(numbers)]


def moment(at: datetime) -> str:
    return at.isoformat()


@given(st.lists(NUMBERS, max_size=60))
@example([5e-324])
def test_columns_and_lines_stay_within_their_frame(numbers: list[float]) -> None:
    for draw in (columns, line):
        chart = draw("work", values_of(numbers), words=str, moment=moment, head="speed")
        assert len(chart.marks) == len(numbers)
        assert all(0 <= mark.x <= 1 and 0 <= mark.share <= 1 for mark in chart.marks)
        assert [mark.value for mark in chart.marks] == [str(number) for number in numbers]
        assert "nan" not in chart.path and "inf" not in chart.area


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats()), max_size=60))
def test_a_curve_leaves_out_what_is_no_number(points: list[tuple[int, float]]) -> None:
    chart = curve("loss", points, words=str, heads=("step", "loss"))
    assert len(chart.marks) == sum(math.isfinite(loss) for _, loss in points)
    assert all(0 <= mark.x <= 1 for mark in chart.marks)
    assert all(0 <= mark.share <= 1 for mark in chart.marks)


def test_the_highest_column_says_where_the_frame_ends() -> None:
    chart = columns("work", values_of([0.0, 30.0, 12.0]), words=lambda value: f"{value:g}", moment=moment, head="x")
    assert chart.ticks == ("40", "20", "0")
    assert [round(mark.share, 3) for mark in chart.marks] == [0, 0.75, 0.3]
    assert chart.summary == f"at most 30, at {moment(START + timedelta(hours=1))}"


@given(NUMBERS.filter(lambda value: value > 1e-300))
def test_a_nice_top_is_just_above(value: float) -> None:
    assert value <= nice_top(value) * (1 + 1e-6)
    assert nice_top(value) <= value * 2.5 * (1 + 1e-6)


@given(st.lists(st.integers(0, 10**12), max_size=8))
def test_parts_make_a_whole(counts: list[int]) -> None:
    found = parts([(str(index), count, "good") for index, count in enumerate(counts)])
    assert sum(part.count for part in found) == sum(counts)
    assert not found or math.isclose(found[-1].begin + found[-1].share, 1)
    assert all(0 <= part.share <= 1 for part in bars([(str(count), count) for count in counts if count], "good"))
