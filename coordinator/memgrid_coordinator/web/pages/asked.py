"""What the address of a page asks for, read strictly."""

from __future__ import annotations

import re

from aiohttp import web

from memgrid.errors import InvalidError
from memgrid.leaderboard import PAGE_LINES_MAX, BoardAsk, board_ask
from memgrid.units import UnitKey
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.views import Span

PAGE_MAX = 10_000
WORDS_LENGTH_MAX = 200
KEYS_MAX = 50
_KEY = re.compile("[0-9a-f]{64}")


def page_in(request: web.Request) -> int:
    """Which page of a list, from 1; raises InvalidError."""
    text = request.query.get("page", "1")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= PAGE_MAX:
        raise InvalidError(f"page: expected a number from 1 to {PAGE_MAX}, found {text[:40]!r}")
    return int(text)


def span_in(request: web.Request) -> Span | None:
    """How far back to look; None when it does not say. Raises InvalidError."""
    text = request.query.get("span", "")
    if text not in ("", *Span):
        raise InvalidError(f"span: expected one of {', '.join(Span)}, found {text[:40]!r}")
    return Span(text) if text else None


def board_in(request: web.Request) -> BoardAsk:
    """Which page of which leaderboard. Raises InvalidError."""
    lines = request.query.get("lines", "0")
    if not lines.isascii() or not lines.isdigit():
        raise InvalidError(f"lines: expected a number up to {PAGE_LINES_MAX}, found {lines[:40]!r}")
    asked = {name: request.query.get(name, "") for name in ("by", "period", "cursor")}
    return board_ask(**asked, lines_max=min(int(lines[:9]), PAGE_LINES_MAX + 1))


def state_in(request: web.Request) -> CampaignState | None:
    """Which campaigns; None for all. Raises InvalidError."""
    text = request.query.get("state", "")
    if text not in ("", *CampaignState):
        raise InvalidError(f"state: expected one of {', '.join(CampaignState)}, found {text[:40]!r}")
    return CampaignState(text) if text else None


def keys_in(request: web.Request) -> list[UnitKey]:
    """Which units, by their whole keys with commas between. Raises InvalidError."""
    keys = request.query.get("keys", "").split(",")
    if len(keys) > KEYS_MAX or not all(_KEY.fullmatch(key) for key in keys):
        raise InvalidError(f"keys: expected 1 to {KEYS_MAX} keys of units, 64 hexadecimal digits each, with commas")
    return [UnitKey(key) for key in dict.fromkeys(keys)]


def words_in(request: web.Request, *names: str) -> dict[str, str]:
    """What people typed, by field, without what no search could look for."""
    return {name: request.query.get(name, "").replace("\0", "").strip()[:WORDS_LENGTH_MAX] for name in names}
