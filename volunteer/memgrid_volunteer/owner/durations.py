"""How long, as people type it."""

from __future__ import annotations

import re
from datetime import timedelta

from memgrid.errors import InvalidError

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = timedelta(days=3660)


def parse_duration(text: str) -> timedelta:
    """Raises InvalidError for what is no time at all, or longer than ten years.

    >>> parse_duration("1h30m")
    datetime.timedelta(seconds=5400)
    """
    cleaned = text.strip().lower()
    parts = _PART.findall(cleaned)
    if not parts or _PART.sub("", cleaned).strip():
        raise InvalidError(f"{text!r}: expected a time such as 45m, 1h or 1h30m")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if not 0 < seconds <= _LONGEST.total_seconds():
        raise InvalidError(f"{text!r}: expected a time of more than nothing and less than ten years")
    return timedelta(seconds=seconds)
