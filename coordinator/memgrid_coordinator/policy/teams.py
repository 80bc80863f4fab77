"""Who may found a team, and how often one may change: names are few, and strangers are many."""

from __future__ import annotations

FOUNDER_RESULTS_MIN = 1
"""Credited results before an account may found a team: accounts cost nothing, and names would be taken by nobody."""
FOUNDED_MAX = 3
"""Teams that one account may found, ever."""
MOVES_A_DAY_MAX = 8
"""How often an account may found, join or leave on one day (UTC)."""


def why_not_found(*, results: int, founded: int) -> str | None:
    """Why an account may not found a team; None when it may.

    >>> why_not_found(results=1, founded=0), why_not_found(results=0, founded=0)
    (None, 'a team is founded by who has credit: let this account have a result accepted first')
    """
    if results < FOUNDER_RESULTS_MIN:
        return "a team is founded by who has credit: let this account have a result accepted first"
    if founded >= FOUNDED_MAX:
        return f"this account has founded {founded} teams, and that is as many as one may"
    return None
