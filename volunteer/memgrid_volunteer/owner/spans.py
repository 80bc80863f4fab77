"""Spans of a week such as `mon-fri 09:00-18:00`, in the owner's local time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SPAN_FORM = 'a span such as "mon-fri 09:00-18:00", "22:00-07:00" or "sat-sun"'
_FORM = re.compile(
    rf"(?P<days>(?:{'|'.join(DAYS)})(?:-(?:{'|'.join(DAYS)}))?(?:,(?:{'|'.join(DAYS)})(?:-(?:{'|'.join(DAYS)}))?)*)?"
    r"(?:(?:^| )(?P<begins>\d\d:\d\d)-(?P<ends>\d\d:\d\d))?"
)
_WEEK = timedelta(days=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """On each of `days` (0 is Monday) from `begins` to `ends`; into the next day where that is not later."""

    days: frozenset[int]
    begins: time
    ends: time

    @property
    def is_over_midnight(self) -> bool:
        return self.ends <= self.begins

    def contains(self, wall: datetime) -> bool:
        """Whether the wall clock stands inside; the last minute does not belong to it."""
        today, yesterday = wall.weekday(), (wall.weekday() - 1) % 7
        moment = wall.time()
        if not self.is_over_midnight:
            return today in self.days and self.begins <= moment < self.ends
        return (today in self.days and moment >= self.begins) or (yesterday in self.days and moment < self.ends)


def parse_span(text: str) -> Span:
    """Raises ValueError with what was expected.

    >>> parse_span("fri-sun 22:30-06:00").days == {4, 5, 6}
    True
    """
    found = _FORM.fullmatch(text.strip().lower())
    if found is None or not text.strip():
        raise ValueError(SPAN_FORM)
    days = _days(found["days"]) if found["days"] else frozenset(range(7))
    if found["begins"] is None:
        return Span(days=days, begins=time(), ends=time())
    return Span(days=days, begins=_time(found["begins"]), ends=_time(found["ends"]))


def inside(spans: Sequence[Span], now: datetime) -> bool:
    """Whether an aware moment lies in any of the spans, in its own zone."""
    return any(span.contains(now) for span in spans)


def next_moment(spans: Sequence[Span], now: datetime, fits: Callable[[datetime], bool]) -> datetime | None:
    """The first moment after `now`, in UTC, at which something about these spans fits; None within a week.

    Every beginning and end within the coming days is tried in turn, and every change of the clocks, which may jump
    over one of them or come back before it.

    >>> office = [parse_span("09:00-18:00")]
    >>> next_moment(office, datetime(2026, 3, 2, 17, 30, tzinfo=UTC), lambda then: not inside(office, then)).hour
    18
    """
    moments = (edge.astimezone(now.tzinfo) for edge in sorted(_edges(spans, now)))
    return next((moment.astimezone(UTC) for moment in moments if fits(moment)), None)


def _edges(spans: Sequence[Span], now: datetime) -> set[datetime]:
    edges = set[datetime]()
    for span in spans:
        for offset in range(-1, _WEEK.days + 1):
            day = now.date() + timedelta(days=offset)
            for wall in (span.begins, span.ends):
                edges |= _moments(day, wall, now)
    begins = now.astimezone(UTC)
    for days in range(_WEEK.days):
        edges |= _clock_change(begins + timedelta(days=days), begins + timedelta(days=days + 1), now)
    return {edge for edge in edges if begins < edge <= begins + _WEEK}


def _moments(day: date, wall: time, now: datetime) -> set[datetime]:
    """When the wall clock shows this: two moments where an hour is there twice."""
    return {datetime.combine(day, wall, now.tzinfo).replace(fold=fold).astimezone(UTC) for fold in (0, 1)}


def _clock_change(after: datetime, until: datetime, now: datetime) -> set[datetime]:
    """The second at which the clocks of `now`'s zone change between two moments, if they do."""
    if _offset(after, now) == _offset(until, now):
        return set()
    before = after
    while until - after > timedelta(seconds=1):
        middle = after + (until - after) / 2
        if _offset(middle, now) == _offset(before, now):
            after = middle
        else:
            until = middle
    return {until.replace(microsecond=0)}


def _offset(moment: datetime, now: datetime) -> timedelta | None:
    return moment.astimezone(now.tzinfo).utcoffset()


def _days(text: str) -> frozenset[int]:
    days = set[int]()
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        days |= {day % 7 for day in range(begin, end + (7 if end < begin else 0) + 1)}
    return frozenset(days)


def _time(text: str) -> time:
    hours, minutes = int(text[:2]), int(text[3:])
    if (hours, minutes) == (24, 0):
        return time()
    if hours > 23 or minutes > 59:
        raise ValueError(SPAN_FORM)
    return time(hours, minutes)
