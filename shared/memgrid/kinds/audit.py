"""What a replay says: how far a claim and its replay are apart, in three zones, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

SUSPICIOUS_UP_TO = 2.0
"""Times the limit: what lies between is no proof, for limits were fitted to a finite sample of honest answers."""


class Zone(StrEnum):
    """How a statistic lies to its limit, or an audit's worst one does."""

    PASS = "pass"
    SUSPICIOUS = "suspicious"
    FAULT = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A part of an answer, computed again: `statistics` and `limits` have the same names.

    `zone` is the worst statistic's, or FAULT where a hard rule was broken (`broken_rule` says which, in words).
    `where` is where the worst one was found, as people say it, and "" when there is nothing to say. `flops` are the
    checker's, to set against the unit's own.
    """

    statistics: dict[str, float]
    limits: dict[str, float]
    zone: Zone
    where: str
    broken_rule: str
    flops: int

    @property
    def worst(self) -> tuple[str, float]:
        """The statistic that is furthest out, and how many times its limit it is; ("", 0) when there is none.

        >>> judge({"V median": 0.041, "K median": 0.001}, {"V median": 0.02, "K median": 0.01}, flops=0).worst
        ('V median', 2.05)
        """
        shares = ((name, share_of(value, self.limits[name])) for name, value in self.statistics.items())
        return max(shares, key=lambda one: one[1], default=("", 0.0))

    def in_words(self) -> str:
        """The worst of it for people, in one line.

        >>> judge({"V median": 0.041}, {"V median": 0.023}, where="layer 0, tokens 16 to 32", flops=0).in_words()
        'V median 4.1e-02, allowed 2.3e-02, at layer 0, tokens 16 to 32'
        >>> judge({}, {}, where="step 4", broken_rule="its loss is no number", flops=0).in_words()
        'its loss is no number, at step 4'
        """
        place = f", at {self.where}" if self.where else ""
        if self.broken_rule:
            return self.broken_rule + place
        name, _ = self.worst
        if not name:
            return "nothing to compare" + place
        return in_words(name, self.statistics[name], self.limits[name]) + place


def judge(
    statistics: Mapping[str, float],
    limits: Mapping[str, float],
    *,
    where: str = "",
    broken_rule: str = "",
    flops: int,
) -> Audit:
    """An audit by its statistics and a hard rule, if one is broken; `limits` may name more than was found.

    >>> judge({"relative L2": 0.54}, {"relative L2": 0.01}, where="steps 8 to 16", flops=0).zone
    <Zone.FAULT: 'fault'>
    """
    found = dict(statistics)
    allowed = {name: limits[name] for name in found}
    zones = {zone_of(value, allowed[name]) for name, value in found.items()}
    worst = next((zone for zone in (Zone.FAULT, Zone.SUSPICIOUS) if zone in zones), Zone.PASS)
    zone = Zone.FAULT if broken_rule else worst
    return Audit(statistics=found, limits=allowed, zone=zone, where=where, broken_rule=broken_rule, flops=flops)


def zone_of(value: float, limit: float) -> Zone:
    """Where one statistic lies; NaN is above any limit.

    >>> [str(zone_of(value, 1.0)) for value in (1.0, 1.5, 2.0, 2.1, float("nan"))]
    ['pass', 'suspicious', 'suspicious', 'fault', 'fault']
    """
    if value <= limit:
        return Zone.PASS
    return Zone.SUSPICIOUS if value <= SUSPICIOUS_UP_TO * limit else Zone.FAULT


def share_of(value: float, limit: float) -> float:
    """A statistic as a multiple of its limit: infinite for NaN, and for anything at all where nothing is allowed."""
    if value == 0:
        return 0.0
    return value / limit if limit and value == value else float("inf")


def in_words(name: str, value: float, limit: float) -> str:
    """A statistic and its limit as people read them.

    >>> in_words("V median", 0.041, 0.023)
    'V median 4.1e-02, allowed 2.3e-02'
    """
    return f"{name} {value:.1e}, allowed {limit:.1e}"
