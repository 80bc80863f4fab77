"""What a diagnosis finds: one line each, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    FACT = "fact"
    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a diagnosis: what was looked at, what was seen, and what to do about it."""

    level: Level
    about: str
    text: str
    advice: str = ""


_MARKS = {Level.FACT: "", Level.OK: "ok", Level.WARNING: "WARNING", Level.BAD: "BAD"}


def lines_of(finding: Finding) -> Iterator[str]:
    """As people read it, and paste it.

    >>> print(*lines_of(Finding(level=Level.BAD, about="disk", text="full", advice="free some")), sep="\\n")
    BAD     disk         full
                         → free some
    """
    yield f"{_MARKS[finding.level]:8}{finding.about:13}{finding.text}"
    if finding.advice:
        yield f"{'':21}→ {finding.advice}"
