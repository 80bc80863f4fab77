"""The words that tell what a text is about, for finding cubes by what somebody asks."""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"[^\W\d_][\w'’-]*[^\W_]|\d{3,}")
_CHARACTERS_MAX = 40
_COMMON_WORDS = """
a about above after again against all also although am an and another any are around as at be became because been
before being below between both but by can cannot could did do does doing done down during each either else etc even
ever every few first for from further get gets give given go goes had has have having he her here hers him his how
however i if in into is it its itself just know last least less let like made make makes many may me might more most
much must my need never new no nor not now of off often on once one only or other our out over own per please put
rather really s said same say says see seen shall she should since so some still such take takes tell than that the
their them then there these they thing things this those though three through thus to too two under until up upon us
use used uses using very want was way we well were what when where whether which while who whom whose why will with
within without would yes yet you your
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def words_of(text: str) -> list[str]:
    """The telling words of a text in order, lower case, with plurals as their singular.

    >>> words_of("How are the valves of Müller's pump opened in 2024?")
    ['valve', 'müller', 'pump', 'opened', '2024']
    """
    words = (match.group().lower().replace("’", "'").removesuffix("'s") for match in _WORD.finditer(text))
    return [_singular(word[:_CHARACTERS_MAX]) for word in words if len(word) > 1 and word not in _COMMON]


def subject_terms(text: str, limit: int = 48) -> tuple[str, ...]:
    """The most frequent telling words of a text, most frequent first.

    >>> subject_terms("The pump has a valve. The valve opens at three bar; the valve of the pump closes at two.", 3)
    ('valve', 'pump', 'open')
    """
    counts = Counter(words_of(text))
    # By first occurrence where they occur equally often: what a text begins with is what it is about.
    return tuple(word for word, _ in counts.most_common(limit))


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
