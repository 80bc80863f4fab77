"""Is what is done of a unit worth its way over the network? Two decisions, before anything is packed or fetched."""

from __future__ import annotations

from dataclasses import dataclass

ASSUMED_BYTES_PER_S = 1.25e6
"""Of a line whose owner names no pace: ten megabits a second upwards, as homes have."""
SAVES_AT_LEAST = 2.0
"""Times as many seconds as sending it takes, for somebody has to fetch it, too."""
ROUND_TRIPS_S = 0.2
MONTH_SHARE = 0.1
"""Of what may still go over the network this month; results come first."""
FETCHED_BYTES_MAX = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the owner of this machine lets go over the network."""

    is_spared: bool = False
    """Nothing large may travel now: a metered line, or a month that is used up."""
    up_bytes_per_s: float | None = None
    month_left_bytes: float | None = None


def saved_s(compute_s: float, done: float, known: float) -> float:
    """Seconds that went into what the grid has not got yet: it knows the share `known` of the `done`.

    >>> saved_s(60.0, 0.5, 0.0), saved_s(60.0, 0.5, 0.25), saved_s(60.0, 0.5, 0.6), saved_s(60.0, 0.0, 0.0)
    (60.0, 30.0, 0.0, 0.0)
    """
    return compute_s * (max(0.0, done - known) / done) if done > 0 else 0.0


def is_worth_sending(size_bytes: int, seconds_saved: float, room: Room, limit_s: float | None = None) -> bool:
    """Whether so many bytes are worth sending for so many seconds of computing; `limit_s`: it has to be done by then.

    >>> is_worth_sending(1_000_000, 60.0, Room()), is_worth_sending(100_000_000, 60.0, Room())
    (True, False)
    >>> is_worth_sending(1_000_000, 60.0, Room(is_spared=True))
    False
    >>> is_worth_sending(1_000_000, 60.0, Room(), limit_s=0.5)
    False
    """
    sending_s = ROUND_TRIPS_S + size_bytes / (room.up_bytes_per_s or ASSUMED_BYTES_PER_S)
    is_in_time = limit_s is None or sending_s <= limit_s
    return seconds_saved >= SAVES_AT_LEAST * sending_s and is_in_time and _may_travel(size_bytes, room)


def is_worth_fetching(size_bytes: int, room: Room) -> bool:
    """Whether to begin with it at all; who left it has weighed it against the work, and waiting for it has a limit.

    >>> is_worth_fetching(1_000_000, Room()), is_worth_fetching(1_000_000, Room(month_left_bytes=5e6))
    (True, False)
    """
    return size_bytes <= FETCHED_BYTES_MAX and _may_travel(size_bytes, room)


def _may_travel(size_bytes: int, room: Room) -> bool:
    if room.is_spared:
        return False
    return room.month_left_bytes is None or size_bytes <= MONTH_SHARE * room.month_left_bytes
