"""How a volunteer stands with each of its grids, in words: for its commands, its page and its terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from memgrid.nickname import nickname
from memgrid.text import flops_text, seconds_text
from memgrid_volunteer.places import Membership
from memgrid_volunteer.status import GridStatus, VolunteerStatus
from memgrid_volunteer.view import Tone

LATELY = timedelta(days=7)
_TONES = {"running": Tone.GOOD, "away": Tone.BAD, "ended": Tone.BAD}
_STATES = {"running": "computing", "away": "can't be reached", "ended": "has turned this machine away"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GridView:
    """One grid; every text is ready to be read and empty where there is nothing to say."""

    name: str
    url: str
    label: str
    host_id: str
    public_name: str
    """Of the account, on the grid's pages."""
    share: int
    part: str
    """What the share comes to beside those of the others."""
    lately_s: float
    """Device-seconds that were computed for it."""
    lately: str
    """The same beside the others', in words."""
    tone: Tone
    state: str
    why: str
    units: str
    credit: str


def grid_views(
    memberships: Sequence[Membership], status: VolunteerStatus, computed_s: Mapping[str, float], *, is_running: bool
) -> tuple[GridView, ...]:
    """In the order of the home; `computed_s`: device-seconds lately by the grid's address."""
    shares, total_s = sum(each.share for each in memberships), sum(computed_s.values())
    known = {grid.url: grid for grid in status.grids}
    views = []
    for each in memberships:
        grid = known.get(each.page_url, GridStatus(url=each.page_url))
        lately_s, tally = computed_s.get(each.page_url, 0.0), grid.tally
        of_all = f", {lately_s / total_s:.0%} of all" if total_s and len(memberships) > 1 else ""
        tone, state, why = _standing(grid) if is_running else (Tone.QUIET, "stopped", "")
        views.append(
            GridView(
                name=each.name,
                url=each.page_url,
                label=each.label,
                host_id=each.host_id,
                public_name=nickname(each.account_id),
                share=each.share,
                part=part_text(each.share, shares),
                lately_s=lately_s,
                lately=f"{seconds_text(lately_s)}{of_all}" if lately_s else "nothing yet",
                tone=tone,
                state=state,
                why=why,
                units=f"{tally.accepted} of {tally.units_done} accepted",
                credit=flops_text(tally.credit_flops),
            )
        )
    return tuple(views)


def part_text(share: int, shares: int) -> str:
    """
    >>> part_text(30, 130), part_text(0, 130), part_text(0, 0)
    ('23%', 'what others leave', 'what others leave')
    """
    return f"{share / shares:.0%}" if share else "what others leave"


def names_text(names: Sequence[str]) -> str:
    """
    >>> names_text(["a"]), names_text(["a", "b"]), names_text(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _standing(grid: GridStatus) -> tuple[Tone, str, str]:
    reason = grid.reason
    why = "" if reason is None else reason.text or reason.code.value.replace("_", " ")
    return _TONES.get(grid.state, Tone.QUIET), _STATES.get(grid.state, grid.state), why
