"""Curves fit into their place whatever their values, and go where the values go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memgrid.cli.curves import plot, sparkline

values = st.floats(-1e6, 1e6)


@given(st.lists(values, max_size=300), st.integers(1, 60))
def test_a_sparkline_is_as_long_as_its_values_or_its_place(found: list[float], width: int) -> None:
    assert len(sparkline(found, width)) == min(len(found), width)


def test_a_sparkline_falls_as_its_values_do() -> None:
    bars = sparkline([float(value) for value in range(200, 0, -1)], 24)
    assert list(bars) == sorted(bars, reverse=True)
    assert (bars[0], bars[-1]) == ("█", "▁")


@given(st.lists(values, min_size=1, max_size=60), st.integers(8, 80), st.integers(1, 12))
def test_a_plot_stays_in_its_frame(ys: list[float], width: int, height: int) -> None:
    lines = plot([(float(x), y) for x, y in enumerate(ys)], width=width, height=height)
    assert len(lines) == height + 2
    margin = lines[-2].index("└")
    assert all(len(line) <= margin + 1 + width for line in lines[:-1])
    drawn = [line[margin + 1 :] for line in lines[:height]]
    assert any(0x2800 < ord(character) <= 0x28FF for line in drawn for character in line)


def test_a_plot_has_no_gaps_where_it_is_steep() -> None:
    lines = plot([(0.0, 10.0), (1.0, 0.0)], width=2, height=8)
    assert all(any(ord(character) > 0x2800 for character in line.partition("┤")[2]) for line in lines[:8])
