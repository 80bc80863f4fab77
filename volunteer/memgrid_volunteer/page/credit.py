"""The plot of credit: a column an hour, a day or a month, each by the machine's own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any

from memgrid.charts import Chart, columns
from memgrid.text import flops_text
from memgrid_volunteer.done import Total
from memgrid_volunteer.history import History
from memgrid_volunteer.owner.local_time import LOCAL


class Span(StrEnum):
    """How far back the plot of credit looks."""

    DAY = "day"
    MONTH = "month"
    YEAR = "year"


def credit_facts(history: History, span: Span, now: datetime) -> dict[str, Any]:
    """The plot of credit: a column an hour, a day or a month."""
    chart = credit_chart(history, span, now)
    return {
        "title": chart.title,
        "summary": chart.summary,
        "ticks": chart.ticks,
        "first": chart.first,
        "last": chart.last,
        "width": chart.width,
        "marks": [asdict(mark) for mark in chart.marks],
    }


def credit_chart(history: History, span: Span, now: datetime) -> Chart:
    local = now.astimezone(LOCAL)
    if span is Span.DAY:
        first = local.replace(minute=0, second=0, microsecond=0) - timedelta(hours=23)
        found = {total.at.timestamp() // 3600: total for total in history.hours(first)}
        hours = [first + timedelta(hours=hour) for hour in range(24)]
        values = [(hour, _flops(found.get(hour.timestamp() // 3600))) for hour in hours]
        return _chart("Credit in each hour", values, lambda at: f"{at:%H:%M}")
    today = local.date()
    if span is Span.MONTH:
        days = [today - timedelta(days=29 - day) for day in range(30)]
        totals = {total.at.date(): total for total in history.days(days[0])}
        values = [(_midnight(day), _flops(totals.get(day))) for day in days]
        return _chart("Credit of each day", values, lambda at: f"{at.day} {at:%b}")
    months = [_month_before(today, 11 - index) for index in range(12)]
    sums = dict.fromkeys(months, 0.0)
    for total in history.days(months[0]):
        if (month := total.at.date().replace(day=1)) in sums:
            sums[month] += total.credit_flops
    values = [(_midnight(month), flops) for month, flops in sums.items()]
    return _chart("Credit of each month", values, lambda at: f"{at:%b %Y}")


def _chart(title: str, values: Sequence[tuple[datetime, float]], moment: Callable[[datetime], str]) -> Chart:
    return columns(title, values, words=_tick, moment=moment, head="credit")


def _flops(total: Total | None) -> float:
    return 0.0 if total is None else float(total.credit_flops)


def _tick(flops: float) -> str:
    return flops_text(flops).replace(".0 ", " ") if flops else "0"


def _month_before(day: date, back: int) -> date:
    """The first of a month some months back.

    >>> _month_before(date(2026, 2, 14), 3)
    datetime.date(2025, 11, 1)
    """
    index = day.year * 12 + day.month - 1 - back
    return date(index // 12, index % 12 + 1, 1)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=LOCAL)
