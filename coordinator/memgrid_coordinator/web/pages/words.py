"""Numbers, moments and states in the words of the pages."""

from __future__ import annotations

from datetime import datetime, timedelta

from memgrid.leaderboard import Period, Ranked
from memgrid.text import bytes_text, flops_text, seconds_text
from memgrid_coordinator.views import Span

_AGO = ((timedelta(days=2), "d", 86400), (timedelta(hours=2), "h", 3600), (timedelta(minutes=2), "min", 60))

PERIOD_WORDS = {Period.ALL: "ever", Period.MONTH: "30 days", Period.WEEK: "7 days", Period.DAY: "today"}
RANKED_WORDS = {Ranked.ACCOUNTS: "volunteers", Ranked.TEAMS: "teams"}
SPAN_WORDS = {Span.HOUR: "hour", Span.DAY: "day", Span.WEEK: "week", Span.MONTH: "month"}
REASONS = {
    "disagrees": "disagreed with the others",
    "replay_differs": "a replay gave something else",
    "sketch_mismatch": "the upload was not what was judged",
    "digest_mismatch": "the upload was not what was promised",
    "upload_missing": "the upload never came",
    "wrong_shape": "not of the right form",
    "wrong_outputs": "not the files that were asked for",
    "bad_sketch": "an unreadable sketch",
    "not_finite": "numbers that are none",
    "other": "another reason",
}
"""What people read for a reason's code; any other code is shown as it is."""


def speed_text(flops_per_s: float) -> str:
    """FLOPs a second.

    >>> speed_text(2.5e12), speed_text(2e11)
    ('2.5 TFLOP/s', '200 GFLOP/s')
    """
    return f"{flops_text(flops_per_s).strip().replace('.0 ', ' ')}/s"


def share_text(share: float) -> str:
    """A share of a whole, never rounded up to all of it.

    >>> share_text(0.9999), share_text(1.0), share_text(0.123)
    ('99%', '100%', '12%')
    """
    return f"{int(100 * share + 1e-9)}%"


def ago_text(moment: datetime, now: datetime) -> str:
    """How long ago, in one unit.

    >>> from datetime import UTC
    >>> now = datetime(2026, 1, 2, tzinfo=UTC)
    >>> ago_text(now - timedelta(seconds=30), now), ago_text(now - timedelta(hours=5), now)
    ('just now', '5 h ago')
    """
    passed = now - moment
    for limit, unit, seconds in _AGO:
        if passed >= limit:
            return f"{int(passed.total_seconds() // seconds)} {unit} ago"
    return "just now" if passed < timedelta(minutes=1) else "1 min ago"


def left_text(seconds: float | None) -> str:
    """The time that is left, about: no finer than a second.

    >>> left_text(95.0), left_text(0.2)
    ('1 min 35 s', '1.0 s')
    """
    return "unknown: nobody is computing" if seconds is None else long_text(max(1.0, seconds))


def long_text(seconds: float) -> str:
    """How long something takes, however long that is.

    >>> long_text(0.00002), long_text(0.0081), long_text(400_000.0)
    ('under 1 ms', '8 ms', '4.6 days')
    """
    if seconds < 0.001:
        return "under 1 ms"
    return f"{seconds / 86400:.1f} days" if seconds >= 2 * 86400 else seconds_text(seconds)


def moment_text(moment: datetime) -> str:
    """A moment for everybody: in UTC, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def tick_text(moment: datetime, span: timedelta) -> str:
    """A moment below a plot: the time for short ones, the day for long ones."""
    if span <= timedelta(hours=26):
        return f"{moment:%H:%M}"
    return f"{moment.day} {moment:%b}" if span > timedelta(days=10) else f"{moment.day} {moment:%b %H:%M}"


def reason_text(code: str) -> str:
    """Why a report was turned down."""
    return REASONS.get(code, code.replace("_", " "))


def line_text(bytes_per_s: float) -> str:
    """The speed of a line, in bits as lines are sold.

    >>> line_text(12_500_000)
    '100 Mbit/s'
    """
    return bytes_text(8 * bytes_per_s).removesuffix("B").rstrip().replace(".0 ", " ") + "bit/s"
