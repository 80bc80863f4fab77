"""Curves in a terminal: a line of bars, or a plot of dots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]
_BARS = "▁▂▃▄▅▆▇█"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bit of each dot of a braille cell, by column and row."""


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Values as bars between their lowest and highest; more of them than `width` are averaged in groups.

    >>> sparkline([2.0, 1.5, 1.2, 1.0])
    '█▅▂▁'
    """
    values = _shortened(values, width)
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1)) if span else 0] for value in values)


def plot(points: Sequence[Point], *, width: int = 60, height: int = 8) -> list[str]:
    """Lines of text with the points joined, their highest and lowest y on the left, first and last x below.

    >>> for line in plot([(0, 2.0), (5, 1.0), (10, 0.0)], width=6, height=3):
    ...     print(line)
    2.00 ┤⠙⢦⡀
    1.00 ┤  ⠙⢦⡀
    0.00 ┤    ⠙⢦
         └──────
          0   10
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    grid = [[0] * width for _ in range(height)]
    columns, rows = 2 * width, 4 * height
    before = round((high - points[0][1]) / ((high - low) or 1) * (rows - 1))
    for column in range(columns):
        x = left + (right - left) * column / (columns - 1)
        y = _at(points, x)
        row = round((high - y) / ((high - low) or 1) * (rows - 1))
        # What lies between two neighbours is drawn too, so that a steep curve has no gaps.
        for dot in range(min(row, before), max(row, before) + 1):
            grid[dot // 4][column // 2] |= _DOTS[column % 2][dot % 4]
        before = row
    labels = [f"{high - (high - low) * number / max(height - 1, 1):.2f}" for number in range(height)]
    margin = max(len(label) for label in labels)
    lines = [
        f"{label:>{margin}} ┤{''.join(chr(_BRAILLE + cell) if cell else ' ' for cell in row).rstrip()}"
        for label, row in zip(labels, grid, strict=True)
    ]
    first, last = f"{left:g}", f"{right:g}"
    return [*lines, f"{'':{margin}} └{'─' * width}", f"{'':{margin}}  {first}{last:>{width - len(first)}}"]


def _at(points: Sequence[Point], x: float) -> float:
    """The y at x on the line through the points, which come in the order of their x."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * ((x - x0) / (x1 - x0) if x1 > x0 else 1.0)
    return points[-1][1]


def _shortened(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    cuts = [round(number * len(values) / width) for number in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
