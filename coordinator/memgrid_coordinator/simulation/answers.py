"""What hosts answer, what audits find in it, and which answers look alike."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from memgrid.kinds.audit import Zone
from memgrid_coordinator.simulation.behaviour import WAIT_FOR_TRUST, Kind
from memgrid_coordinator.simulation.hosts import VirtualHost
from memgrid_coordinator.simulation.scenario import Audits
from memgrid_coordinator.simulation.units import RIGHT, TOGETHER, Unit

_GROUPS = 1 << 40
"""Added to a group's number: its common wrong answer. Below are the wrong answers of single hosts."""


class Answers:
    """Draws what is answered and what is found, from one generator of its own."""

    def __init__(self, audits: Audits, rng: Random, is_trusted: Callable[[VirtualHost], bool]) -> None:
        self._audits = audits
        self._random = rng.random
        self._is_trusted = is_trusted
        self._wrong = 0

    def of(self, host: VirtualHost, unit: Unit) -> int:
        """The answer of a host to a unit."""
        population = host.population
        kind = population.kind
        if kind is Kind.HONEST:
            return RIGHT
        if kind in WAIT_FOR_TRUST and not self._is_trusted(host):
            return RIGHT
        if population.only_together:
            return TOGETHER + host.group
        if kind is Kind.COPIER and (copied := _of_the_group(host, unit)) is not None:
            return copied
        if population.group != 1:
            return _GROUPS + host.group if unit.luck < population.wrong_rate else RIGHT
        if self._random() >= population.wrong_rate or self._random() < population.self_check:
            return RIGHT
        self._wrong += 1
        return self._wrong

    def audited(self, host: VirtualHost, answer: int, *, is_second: bool = False) -> Zone:
        """What an audit of an answer finds."""
        luck = self._random()
        if answer != RIGHT:
            detection = host.population.detection
            if luck < detection.audit:
                return Zone.FAULT
            return Zone.SUSPICIOUS if luck < detection.audit + detection.suspicious else Zone.PASS
        if luck < self._audits.fault:
            return Zone.FAULT
        suspicious = self._audits.suspicious_again if is_second else self._audits.suspicious
        return Zone.SUSPICIOUS if luck < self._audits.fault + suspicious else Zone.PASS

    def look_alike(self, one: tuple[VirtualHost, int], other: tuple[VirtualHost, int]) -> bool:
        """Whether a comparison of two reports finds no difference."""
        if one[1] == other[1]:
            return True
        if RIGHT not in (one[1], other[1]):
            return False
        wrong = other if one[1] == RIGHT else one
        return self._random() >= wrong[0].population.detection.sketch


def resolved(unit: Unit) -> None:
    """Make up the minds of those who cheat only together: wrong where two of a group answered, else right."""
    counts: dict[int, int] = {}
    for _, answer in unit.claims:
        if answer >= TOGETHER:
            counts[answer] = counts.get(answer, 0) + 1
    if counts:
        unit.claims = [
            (host, answer if answer < TOGETHER else answer - TOGETHER + _GROUPS if counts[answer] > 1 else RIGHT)
            for host, answer in unit.claims
        ]


def _of_the_group(host: VirtualHost, unit: Unit) -> int | None:
    return next((answer for other, answer in unit.claims if other.group == host.group), None)
