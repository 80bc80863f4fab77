"""Who gave most: the board as the grid tells it, and its way over the wire."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from memgrid.errors import InvalidError
from memgrid.v1 import grid_pb2 as pb

PAGE_LINES = 50
PAGE_LINES_MAX = 100
RANK_MAX = 10_000
"""A board ends here: nobody reads further, and looking would only cost."""


class Ranked(StrEnum):
    """What a board ranks."""

    ACCOUNTS = "accounts"
    TEAMS = "teams"


class Period(StrEnum):
    """How far back a board looks: whole days in UTC, the present one included."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    ALL = "all"

    @property
    def days(self) -> int | None:
        """How many days; None for all there ever were.

        >>> Period.WEEK.days, Period.ALL.days
        (7, None)
        """
        return {Period.DAY: 1, Period.WEEK: 7, Period.MONTH: 30}.get(self)

    def first_day(self, now: datetime) -> int | None:
        """The first day of the period, in days since the beginning of the year 1."""
        return None if self.days is None else (now - timedelta(days=self.days - 1)).toordinal()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardLine:
    """An account, or a team; `name` is its nickname, or what it calls itself."""

    rank: int
    name: str
    flops: float
    results: int
    since: datetime
    """When it joined the grid, or was founded."""
    team: str = ""
    """Of an account: the team it is in now."""
    members: int = 0
    """Of a team: accounts that are in it now."""
    machines: int = 0
    is_computing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """One page of a board."""

    at: datetime
    ranked: Ranked
    period: Period
    lines: tuple[BoardLine, ...]
    total: int
    """How many have credit in the period."""
    flops: float
    """Of all of them."""
    results: int
    cursor: str
    """What asks for the next page; empty at the end."""

    def to_json(self) -> dict[str, Any]:
        lines = [{**asdict(line), "since": line.since.isoformat(timespec="seconds")} for line in self.lines]
        return {**asdict(self), "at": self.at.isoformat(timespec="seconds"), "lines": lines}


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardAsk:
    """A page that somebody wants: of which board, after how many lines, with how many at the most."""

    ranked: Ranked = Ranked.ACCOUNTS
    period: Period = Period.ALL
    skip: int = 0
    lines_max: int = PAGE_LINES


def board_ask(*, by: str = "", period: str = "", cursor: str = "", lines_max: int = 0) -> BoardAsk:
    """What a stranger asks for, in words; empty words mean what is usual. Raises InvalidError.

    >>> board_ask(by="teams", period="week", cursor="50")
    BoardAsk(ranked=<Ranked.TEAMS: 'teams'>, period=<Period.WEEK: 'week'>, skip=50, lines_max=50)
    """
    if by not in ("", *Ranked):
        raise InvalidError(f"by: expected {' or '.join(Ranked)}, found {by[:40]!r}")
    if period not in ("", *Period):
        raise InvalidError(f"period: expected one of {', '.join(Period)}, found {period[:40]!r}")
    if not 0 <= lines_max <= PAGE_LINES_MAX:
        raise InvalidError(f"lines_max: expected at most {PAGE_LINES_MAX}, found {lines_max}")
    is_number = cursor.isascii() and cursor.isdigit() and len(cursor) <= len(str(RANK_MAX))
    if cursor and not (is_number and int(cursor) < RANK_MAX):
        raise InvalidError(f"cursor: expected what a page of the board said, found {cursor[:40]!r}")
    return BoardAsk(
        ranked=Ranked(by or Ranked.ACCOUNTS),
        period=Period(period or Period.ALL),
        skip=int(cursor or 0),
        lines_max=lines_max or PAGE_LINES,
    )


def leaderboard_to_message(board: Leaderboard) -> pb.Leaderboard:
    message = pb.Leaderboard(
        by=board.ranked,
        period=board.period,
        total=board.total,
        flops=board.flops,
        results=board.results,
        cursor=board.cursor,
    )
    message.at.FromDatetime(board.at)
    for line in board.lines:
        said = message.lines.add(
            rank=line.rank,
            name=line.name,
            flops=line.flops,
            results=line.results,
            team=line.team,
            members=line.members,
            machines=line.machines,
            is_computing=line.is_computing,
        )
        said.since.FromDatetime(line.since)
    return message


def leaderboard_from_message(message: pb.Leaderboard) -> Leaderboard:
    try:
        ranked, period = Ranked(message.by), Period(message.period)
    except ValueError:
        raise InvalidError(f"the grid tells a board that this release does not know: {message.by[:40]!r}") from None
    return Leaderboard(
        at=message.at.ToDatetime(UTC),
        ranked=ranked,
        period=period,
        lines=tuple(
            BoardLine(
                rank=line.rank,
                name=line.name,
                flops=line.flops,
                results=line.results,
                since=line.since.ToDatetime(UTC),
                team=line.team,
                members=line.members,
                machines=line.machines,
                is_computing=line.is_computing,
            )
            for line in message.lines
        ),
        total=message.total,
        flops=message.flops,
        results=message.results,
        cursor=message.cursor,
    )
