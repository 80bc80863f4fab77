"""Which text a question is about, by its words: BM25 over what is known of each cube."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from memgrid.cube.terms import words_of

Thing = TypeVar("Thing")
_K1, _B = 1.2, 0.75
COVERAGE_MIN = 0.3
"""The share of a question's telling words that a cube must know; below, it is about something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match(Generic[Thing]):
    """The best of many for a question, and the words that made it so."""

    thing: Thing
    score: float
    matched: tuple[str, ...]
    asked: int
    """Telling words in the question."""


class Index(Generic[Thing]):
    """Things by their words; made once, asked often.

    >>> index = Index([("pump", ["valve", "bar", "pump"]), ("mill", ["flour", "grain", "wheel"])])
    >>> match = index.best("At how many bar does the valve open?")
    >>> match.thing, match.matched, match.asked
    ('pump', ('bar', 'valve'), 3)
    >>> index.best("Who wrote Hamlet?") is None
    True
    """

    def __init__(self, things: Sequence[tuple[Thing, Sequence[str]]]) -> None:
        self._things = [(thing, Counter(words)) for thing, words in things]
        self._known_by = Counter(word for _, words in self._things for word in words)
        lengths = [words.total() for _, words in self._things]
        self._mean_length = sum(lengths) / max(1, len(lengths))

    def best(self, question: str) -> Match[Thing] | None:
        """The thing that fits best, None when none knows enough of the question's words.

        Source of the score: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
        """
        asked = tuple(dict.fromkeys(words_of(question)))
        matches = [self._match(thing, words, asked) for thing, words in self._things]
        fitting = [match for match in matches if match.matched and len(match.matched) >= COVERAGE_MIN * len(asked)]
        return max(fitting, key=lambda match: match.score, default=None)

    def _match(self, thing: Thing, words: Counter[str], asked: tuple[str, ...]) -> Match[Thing]:
        matched = tuple(word for word in asked if words[word])
        weight = _K1 * (1 - _B + _B * words.total() / max(1.0, self._mean_length))
        score = sum(self._rarity(word) * words[word] * (_K1 + 1) / (words[word] + weight) for word in matched)
        return Match(thing=thing, score=score, matched=matched, asked=len(asked))

    def _rarity(self, word: str) -> float:
        known = self._known_by[word]
        return math.log(1 + (len(self._things) - known + 0.5) / (known + 0.5))
