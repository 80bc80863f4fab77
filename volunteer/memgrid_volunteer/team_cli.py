"""`memgrid volunteer team`, and what `status` says of credit and team."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from memgrid.errors import InvalidError, MemgridError, UnavailableError
from memgrid.teams import Standing, team_name
from memgrid.text import flops_text
from memgrid_volunteer.home import Place
from memgrid_volunteer.standing import ask_standing

STANDING_LIMIT_S = 5.0
"""How long `status` waits for the grid, which it can do without."""


def change_team(place: Place, name: str | None, *, code: str, is_leaving: bool) -> dict[str, Any]:
    """Found or join the team of that name, or leave one; without either only tell. Raises MemgridError."""
    membership = place.membership()
    if is_leaving and (name or code):
        raise InvalidError("team: leave with --leave alone")
    if code and not name:
        raise InvalidError("--code: of which team? memgrid volunteer team NAME --code CODE")
    wanted = "" if is_leaving else None if name is None else team_name(name)
    standing = asyncio.run(ask_standing(membership.url, key=place.key(), team=wanted, code=code))
    if standing.team and (standing.join_code or code):
        place.keep_join_code(membership.url, standing.team, standing.join_code or code)
    known = place.join_code(membership.url, standing.team)
    return {
        "team": standing.team,
        "members": standing.team_members,
        "team_flops": standing.team_flops,
        "code": known,
        "founded": bool(standing.join_code),
    }


def team_in_words(facts: dict[str, Any], *, is_leaving: bool) -> str:
    """What `memgrid volunteer team` prints."""
    if is_leaving:
        return "left the team; what was earned in it stays with it"
    if not facts["team"]:
        return "in no team; found one with: memgrid volunteer team NAME"
    members = f"{facts['members']} member{'' if facts['members'] == 1 else 's'}"
    given = flops_text(facts["team_flops"])
    told = f"{'founded' if facts['founded'] else 'in team'} {facts['team']}: {members}, {given}"
    if not facts["code"]:
        return told
    return f"{told}\nothers join with: memgrid volunteer team '{facts['team']}' --code {facts['code']}"


def standings_of(places: Sequence[Place]) -> list[tuple[dict[str, Any] | None, str]]:
    """How the account of each grid stands, or why the grid does not say; none is waited for long."""

    async def ask() -> list[tuple[dict[str, Any] | None, str]]:
        return await asyncio.gather(*map(_standing_of, places))

    return asyncio.run(ask())


async def _standing_of(place: Place) -> tuple[dict[str, Any] | None, str]:
    try:
        standing = await _soon(place)
    except MemgridError as error:
        return None, str(error)
    facts = asdict(standing)
    del facts["join_code"]
    return facts, ""


async def _soon(place: Place) -> Standing:
    try:
        async with asyncio.timeout(STANDING_LIMIT_S):
            return await ask_standing(place.membership().url, key=place.key())
    except TimeoutError:
        raise UnavailableError(f"{place.grid_url} does not answer") from None


def standing_in_words(facts: dict[str, Any] | None, reason: str) -> list[str]:
    """The lines of `status` about credit that the grid has written, and the team."""
    if facts is None:
        return [f"  standing   not known now: {reason}"]
    escrow = f", {flops_text(facts['escrow_flops'])} more in escrow" if facts["escrow_flops"] else ""
    rank = f"; rank {facts['rank']} of {facts['ranked']}" if facts["rank"] else ""
    lines = [f"  standing   {flops_text(facts['flops'])} for {facts['results']} results{escrow}{rank}"]
    if facts["team"]:
        members = f"{facts['team_members']} member{'' if facts['team_members'] == 1 else 's'}"
        lines.append(f"  team       {facts['team']}: {members}, {flops_text(facts['team_flops'])}")
    return lines
