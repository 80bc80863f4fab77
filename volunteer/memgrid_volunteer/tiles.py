"""The four figures an owner asks for first: credit, units, rank, work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memgrid.nickname import nickname
from memgrid.teams import Standing
from memgrid.text import count_text, flops_text, seconds_text
from memgrid.units import AccountId
from memgrid_volunteer.glance import Glance


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the grid said of the account when it was last asked, or why it did not."""

    standing: Standing | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    name: str
    value: str
    note: str


def tiles(glance: Glance, asked: Mapping[str, Asked]) -> tuple[Tile, ...]:
    """What this machine has counted, and what a grid says of the whole account; `asked` by the grid's address."""
    tally, first = glance.status.tally, glance.memberships[0]
    said, many = asked.get(first.page_url, Asked()), len(glance.memberships) > 1
    turned_down = f", {count_text(tally.rejected)} rejected" if tally.rejected else ""
    awaiting = f", {glance.status.awaiting_verdict} being checked" if glance.status.awaiting_verdict else ""
    return (
        Tile(name="Credit", value=flops_text(tally.credit_flops), note="of all grids" if many else _escrow(said)),
        Tile(
            name="Units accepted",
            value=count_text(tally.accepted),
            note=f"of {count_text(tally.units_done)} computed{turned_down}{awaiting}",
        ),
        _grids(glance, asked) if many else _ranked(said, first.account_id),
        Tile(
            name="Time given",
            value=long_text(tally.compute_s),
            note=f"for {count_text(tally.tokens)} tokens",
        ),
    )


def _ranked(asked: Asked, account_id: AccountId) -> Tile:
    note = f"as {nickname(account_id)}{_team(asked.standing)}"
    return Tile(name="Rank", value=_rank(asked.standing), note=note)


def _grids(glance: Glance, asked: Mapping[str, Asked]) -> Tile:
    """Ranks of several grids have nothing in common: the best of them is told."""
    places = [(each, asked[each.page_url].standing) for each in glance.memberships if each.page_url in asked]
    ranked = [(standing.rank, each.name) for each, standing in places if standing is not None and standing.rank]
    note = "rank {:,} on {}".format(*min(ranked)) if ranked else "each has its share"
    return Tile(name="Grids", value=count_text(len(glance.memberships)), note=note)


def _rank(standing: Standing | None) -> str:
    return f"{standing.rank:,} of {standing.ranked:,}" if standing is not None and standing.rank else "—"


def _team(standing: Standing | None) -> str:
    return f", team {standing.team}" if standing is not None and standing.team else ""


def _escrow(asked: Asked) -> str:
    standing = asked.standing
    if standing is None:
        return f"counted here; {asked.reason}" if asked.reason else "counted here"
    if standing.escrow_flops:
        return f"and {flops_text(standing.escrow_flops)} in escrow until it was audited"
    return f"{flops_text(standing.flops)} by the account in all"


def long_text(seconds: float) -> str:
    """How long somebody has worked.

    >>> long_text(45), long_text(400_000)
    ('45.0 s', '4.6 days')
    """
    return f"{seconds / 86400:.1f} days" if seconds >= 2 * 86400 else seconds_text(seconds)
