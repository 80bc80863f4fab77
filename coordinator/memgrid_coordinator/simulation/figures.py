"""What a simulation came to, as the figures that are compared: for people in a table, for machines in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memgrid_coordinator.simulation.behaviour import CHEATS, Kind
from memgrid_coordinator.simulation.scenario import PolicyName, Scenario
from memgrid_coordinator.simulation.tally import Tally


def figures(scenario: Scenario, tallies: Mapping[PolicyName, Tally]) -> dict[str, Any]:
    """Everything, with the scenario that it holds for; the same for a seed, to the last digit."""
    return {
        "scenario": scenario.model_dump(mode="json"),
        "policies": {name.value: of_policy(scenario, tally) for name, tally in tallies.items()},
    }


def of_policy(scenario: Scenario, tally: Tally) -> dict[str, Any]:
    """The figures of one policy. Shares of nothing are null."""
    useful = tally.accepted_flops
    audits = tally.audited_flops + tally.looked_back_flops
    wasted = tally.late_flops + tally.copied_flops
    honest = [population.name for population in scenario.populations if population.kind is Kind.HONEST]
    accused = sum(tally.populations[name].accused for name in honest if name in tally.populations)
    computed = sum(tally.populations[name].results for name in honest if name in tally.populations)
    return {
        "accepted": tally.accepted,
        "provisional": tally.provisional,
        "cost": _share(tally.reported_flops + audits + wasted, useful),
        "cost_without_waste": _share(tally.reported_flops + audits, useful),
        "computed": _share(tally.reported_flops, useful),
        "audits": _share(tally.audited_flops, useful),
        "looking_back": _share(tally.looked_back_flops, useful),
        "waste": _share(wasted, tally.reported_flops + wasted),
        "waste_of_copies": _share(tally.copied_flops, tally.reported_flops + wasted),
        "audits_flops_per_s": audits / (86400 * scenario.days),
        "wrong_when_counted_on": _share(tally.wrong_first, tally.counted_first),
        "wrong_when_final": _share(tally.wrong_final, tally.called_final),
        "wrong_standing": _share(tally.wrong_standing, tally.accepted),
        "honest_accused_per_result": _share(accused, computed),
        "recalled_of_unfinished": _share(tally.recalled, tally.unfinished),
        "makespans": _makespans(tally),
        "fluid_hours": tally.fluid_s / 3600,
        "makespan_to_fluid": _to_fluid(tally),
        "detection": {
            population.name: _detection(tally, population.name)
            for population in scenario.populations
            if population.kind in CHEATS
        },
        "counts": {
            name: getattr(tally, name)
            for name in (
                "reports", "audits", "second_audits", "overdue_audits", "replicas", "disagreements", "recalled",
                "recalled_wrong", "looked_back", "computed_anew", "retracted", "expired", "copies",
            )
        },
        "suspended_classes": sorted(tally.suspended_classes),
        "populations": {
            name: {
                key: value
                for key, value in asdict(population).items()
                if key not in ("caught_hours", "caught_results")
            }
            for name, population in tally.populations.items()
        },
        "days": [asdict(day) for day in tally.days],
        "caught_hours": sorted(hours for one in tally.populations.values() for hours in one.caught_hours),
    }  # fmt: skip


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _makespans(tally: Tally) -> dict[str, float | None]:
    """Hours from arrival to the last acceptance; null for what was not done in time."""
    return {
        name: (campaign.done_s - campaign.arrives_s) / 3600 if math.isfinite(campaign.done_s) else None
        for name, campaign in tally.campaigns.items()
    }


def _to_fluid(tally: Tally) -> float | None:
    """When the last campaign was done, against the lower bound."""
    done_s = max((campaign.done_s for campaign in tally.campaigns.values()), default=math.inf)
    return done_s / tally.fluid_s if tally.fluid_s and math.isfinite(done_s) else None


def _detection(tally: Tally, name: str) -> dict[str, Any]:
    """How long a population's cheats went on before their first fault."""
    population = tally.populations.get(name)
    if population is None:
        return {"cheated_hosts": 0, "caught": None, "median_hours": None, "p90_hours": None, "median_wrong": None}
    return {
        "cheated_hosts": population.cheated_hosts,
        "caught": _share(len(population.caught_hours), population.cheated_hosts),
        "median_hours": quantile(population.caught_hours, 0.5),
        "p90_hours": quantile(population.caught_hours, 0.9),
        "median_wrong": quantile(population.caught_results, 0.5),
    }


def quantile(values: list[float] | list[int], share: float) -> float | None:
    """The value that so large a share does not exceed; None of nothing.

    >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([], 0.5)
    (2.0, None)
    """
    if not values:
        return None
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)])
