"""What documents need to become cubes, recipe by recipe: pure functions of what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memgrid.campaign import CampaignFile
from memgrid.units import Reason
from memgrid_coordinator.progress import Progress
from memgrid_coordinator.recipes import activation, distill
from memgrid_coordinator.recipes.steps import Seen, Step


class Recipe(Protocol):
    """What each recipe's module answers."""

    def next_step(self, seen: Seen) -> Step:
        """What follows for a document."""

    def withdrawn(self, seen: Seen) -> dict[int, Reason]:
        """Units of it that nobody need compute any more, and why."""

    def progress(self, seen: Seen, losses: Sequence[tuple[int, float]]) -> Progress:
        """How far it is, for people."""


def recipe_of(campaign: CampaignFile) -> Recipe:
    return distill if campaign.recipe == "distill" else activation
