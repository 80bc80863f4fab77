"""Plots as values between 0 and 1 with their words: a template draws the SVG, and text stays text at any width."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

Words = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One column or point: where it stands, how high it is, both between 0 and 1, and what it is in words."""

    x: float
    share: float
    label: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A plot over time or steps; `ticks` are the words at its top, middle and bottom."""

    title: str
    shape: str
    """`columns` or `line`."""
    marks: tuple[Mark, ...]
    ticks: tuple[str, str, str]
    first: str
    last: str
    heads: tuple[str, str]
    """What the columns of its table are called."""
    summary: str

    @property
    def width(self) -> float:
        """Of one column."""
        return 1 / len(self.marks) if self.marks else 1.0

    @property
    def path(self) -> str:
        """The line, in a square of 1000 by 1000 whose y grows downwards.

        >>> marks = (Mark(x=0, share=0, label="", value=""), Mark(x=1, share=0.25, label="", value=""))
        >>> Chart(title="", shape="line", marks=marks, ticks=("", "", ""), first="", last="", heads=("", ""),
        ...       summary="").path
        '0,1000 1000,750'
        """
        return " ".join(f"{_short(1000 * mark.x)},{_short(1000 * (1 - mark.share))}" for mark in self.marks)

    @property
    def area(self) -> str:
        """What lies below the line."""
        if not self.marks:
            return ""
        return f"{_short(1000 * self.marks[0].x)},1000 {self.path} {_short(1000 * self.marks[-1].x)},1000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a whole: its name, how many, its share, and the class that gives it its colour."""

    name: str
    count: int
    share: float
    tone: str
    begin: float = 0.0


def columns(
    title: str,
    values: Sequence[tuple[datetime, float]],
    *,
    words: Words,
    moment: Callable[[datetime], str],
    head: str,
) -> Chart:
    """One column a value."""
    top = nice_top(max((value for _, value in values), default=0.0))
    marks = tuple(
        Mark(x=index / len(values), share=value / top, label=moment(at), value=words(value))
        for index, (at, value) in enumerate(values)
    )
    peak = max(marks, key=lambda mark: mark.share, default=None)
    summary = "nothing yet" if peak is None or not peak.share else f"at most {peak.value}, at {peak.label}"
    return _chart(title, "columns", marks, (0.0, top), words, ("time", head), summary)


def line(
    title: str,
    values: Sequence[tuple[datetime, float]],
    *,
    words: Words,
    moment: Callable[[datetime], str],
    head: str,
    top: float | None = None,
) -> Chart:
    """A line through the values, which stand at even distances."""
    top = top or nice_top(max((value for _, value in values), default=0.0))
    last = max(len(values) - 1, 1)
    marks = tuple(
        Mark(x=index / last, share=min(value / top, 1.0), label=moment(at), value=words(value))
        for index, (at, value) in enumerate(values)
    )
    summary = f"from {marks[0].value} to {marks[-1].value}" if marks else "nothing yet"
    return _chart(title, "line", marks, (0.0, top), words, ("time", head), summary)


def curve(title: str, points: Sequence[tuple[int, float]], *, words: Words, heads: tuple[str, str]) -> Chart:
    """A line through points whose values need not begin at 0: a loss while training."""
    ordered = sorted((x, y) for x, y in points if math.isfinite(y))
    low, high = min((y for _, y in ordered), default=0.0), max((y for _, y in ordered), default=1.0)
    first, width = (ordered[0][0], max(ordered[-1][0] - ordered[0][0], 1)) if ordered else (0, 1)
    marks = tuple(
        Mark(x=(x - first) / width, share=_between(y, low, high), label=str(x), value=words(y)) for x, y in ordered
    )
    summary = f"from {marks[0].value} to {marks[-1].value} in {len(marks)} steps" if marks else "nothing yet"
    return _chart(title, "line", marks, (low, high), words, heads, summary)


def parts(counts: Sequence[tuple[str, int, str]]) -> tuple[Part, ...]:
    """What a whole is made of, from (name, count, tone); what counts nothing is left out.

    >>> [(part.name, part.share, part.begin) for part in parts([("a", 1, ""), ("b", 0, ""), ("c", 3, "")])]
    [('a', 0.25, 0.0), ('c', 0.75, 0.25)]
    """
    whole = sum(count for _, count, _ in counts)
    found, begin = [], 0.0
    for name, count, tone in counts:
        if count:
            found.append(Part(name=name, count=count, share=count / whole, tone=tone, begin=begin))
            begin += count / whole
    return tuple(found)


def bars(counts: Sequence[tuple[str, int]], tone: str) -> tuple[Part, ...]:
    """Counts beside one another: the largest fills its row."""
    top = max((count for _, count in counts), default=1)
    return tuple(Part(name=name, count=count, share=count / top, tone=tone) for name, count in counts)


def nice_top(value: float) -> float:
    """The next number above that is easy to halve: 1, 2, 4, 5 or 10 times a power of ten.

    >>> [nice_top(value) for value in (0, 0.7, 3, 4.1, 12, 730)]
    [1.0, 1.0, 4.0, 5.0, 20.0, 1000.0]
    """
    if value < sys.float_info.min or not math.isfinite(value):
        return 1.0  # below that, steps have no room between two numbers
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 10) if value <= step * power * (1 + 1e-9))


def _chart(
    title: str,
    shape: str,
    marks: tuple[Mark, ...],
    reach: tuple[float, float],
    words: Words,
    heads: tuple[str, str],
    summary: str,
) -> Chart:
    low, high = reach
    return Chart(
        title=title,
        shape=shape,
        marks=marks,
        ticks=(words(high), words((low + high) / 2), words(low)),
        first=marks[0].label if marks else "",
        last=marks[-1].label if marks else "",
        heads=heads,
        summary=summary,
    )


def _between(value: float, low: float, high: float) -> float:
    """Where a value stands between two others; in the middle where they leave no room to stand elsewhere.

    >>> _between(3.0, 2.0, 6.0), _between(3.0, 3.0, 3.0)
    (0.25, 0.5)
    """
    width = high - low
    return (value - low) / width if 0 < width < math.inf else 0.5


def _short(number: float) -> str:
    return f"{number:.1f}".rstrip("0").rstrip(".")
