"""What a team may be called, and how an account asks about its credit and its team."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from memgrid.errors import InvalidError

NAME_LENGTH_MIN = 2
NAME_LENGTH_MAX = 32
CODE_LENGTH_MAX = 64
_MARKS_MAX = 2
_SIGNS = frozenset(" -_.'&!+#")
_TOGETHER = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "IDEOGRAPHIC", "BOPOMOFO"})
"""Scripts that are written with one another, and with Latin letters between."""
_LIKE_LATIN = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u043a\u043c\u0442\u0432\u043d"
    "\u03b1\u03bf\u03c1\u03bd\u03b9\u03ba\u03c4\u03c5\u03c7" + "01",
    "aeopcyxijshdqwkmtbh" + "aopviktux" + "ol",
)
"""Small letters of Cyrillic and Greek, and figures, that look like Latin letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamAsk:
    """The body that an account signs to found, join or leave a team, or only to be told how it stands.

    `team` is None to be told, empty to leave. With no `code` the team is founded.
    """

    nonce: bytes
    team: str | None = None
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an account has earned, and its team."""

    flops: float
    escrow_flops: float
    """Of results that are not final yet."""
    results: int
    rank: int
    """Among all that have credit, of all time; 0 for who has none."""
    ranked: int
    team: str = ""
    team_members: int = 0
    team_flops: float = 0.0
    join_code: str = ""
    """What lets others into the team: told once, to who founded it."""


def team_name(text: str) -> str:
    """A name as it is shown; raises InvalidError for what can't be one.

    >>> team_name("  The   Early Birds ")
    'The Early Birds'
    """
    name = " ".join(unicodedata.normalize("NFKC", text[: 8 * NAME_LENGTH_MAX]).split())
    if not NAME_LENGTH_MIN <= len(name) <= NAME_LENGTH_MAX:
        raise InvalidError(f"team: expected a name of {NAME_LENGTH_MIN} to {NAME_LENGTH_MAX} characters")
    for character in name:
        if unicodedata.category(character)[0] not in "LNM" and character not in _SIGNS:
            raise InvalidError(f"team: expected letters, figures, spaces and - _ . ' & ! + #, found {character!r}")
    if re.search(r"^\W|\W{4}", name) or _has_heaps_of_marks(name):
        raise InvalidError("team: expected a name that begins with a letter or a figure, without heaps of signs")
    if len(likeness(name)) < NAME_LENGTH_MIN:
        raise InvalidError(f"team: expected at least {NAME_LENGTH_MIN} letters or figures")
    if len(scripts := _scripts(name)) > 1:
        raise InvalidError(f"team: expected letters of one script, found {' and '.join(sorted(scripts)).lower()}")
    return name


def likeness(name: str) -> str:
    """What of a name tells it from others: names that look alike have one likeness, and only one of them may be.

    >>> likeness("Early Birds") == likeness("EARLY-BIRDS!") == likeness("\u0435arly b1rds".replace("1", "i"))
    True
    """
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    return "".join(one for one in plain if one.isalnum()).translate(_LIKE_LATIN)


def _has_heaps_of_marks(name: str) -> bool:
    marks = 0
    for character in unicodedata.normalize("NFD", name):
        marks = marks + 1 if unicodedata.category(character).startswith("M") else 0
        if marks > _MARKS_MAX:
            return True
    return False


def _scripts(name: str) -> set[str]:
    """The scripts of its letters, by the first word of their names; those written together count as one."""
    found = {unicodedata.name(one, "UNKNOWN").split()[0] for one in name if unicodedata.category(one)[0] == "L"}
    return found - _TOGETHER - {"LATIN"} if found & _TOGETHER else found
