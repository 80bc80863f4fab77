"""A simulation's figures as a table, policies side by side, under what was assumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from memgrid_coordinator.simulation.behaviour import CHEATS
from memgrid_coordinator.simulation.scenario import Scenario

_NOTHING = "–"


def show(scenario: Scenario, found: dict[str, Any], console: Console) -> None:
    """Print assumptions, figures, and what became of each population."""
    for line in assumptions(scenario):
        console.print(line, highlight=False, soft_wrap=True)
    policies: dict[str, Any] = found["policies"]
    table = Table("", *policies, title=f"{scenario.name}, seed {scenario.seed}")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, text in _rows(scenario):
        cells = [text(of_policy) for of_policy in policies.values()]
        if any(cell != _NOTHING for cell in cells):
            table.add_row(label, *cells)
    console.print(table)


def assumptions(scenario: Scenario) -> list[str]:
    """What the figures rest on, one line for each thing."""
    hours = scenario.availability
    lifetime = f", staying {scenario.lifetime_days:g} days" if scenario.lifetime_days else ""
    lines = [
        f"{scenario.hosts:,} hosts for {scenario.days:g} days, on {hours.on_hours:g} h and off {hours.off_hours:g} h"
        f"{lifetime}; parts of at most {scenario.partition_hosts:,}, each a grid of its own.",
        f"An audit costs {scenario.audits.cost:g} of its unit; of right results it finds "
        f"{scenario.audits.suspicious:g} suspicious and {scenario.audits.fault:g} at fault.",
    ]
    for one in scenario.populations:
        wrong = f", {one.wrong_rate:g} of its results wrong" if one.wrong_rate else ""
        group = "" if one.group == 1 else ", all in one group" if not one.group else f", in groups of {one.group}"
        seen = one.detection
        found = f"; an audit finds {seen.audit:g}" + (f", suspects {seen.suspicious:g}" if seen.suspicious else "")
        lines.append(f"{one.share:.3%} {one.name} ({one.kind}{wrong}{group}){found if one.wrong_rate else ''}.")
    return lines


def _rows(scenario: Scenario) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("cost of an accepted unit", _of("cost", "{:.3f}")),
        ("  without waste", _of("cost_without_waste", "{:.3f}")),
        ("  computed once and again", _of("computed", "{:.3f}")),
        ("  audits", _of("audits", "{:.4f}")),
        ("  looking back", _of("looking_back", "{:.4f}")),
        ("wrong when first counted on", _of("wrong_when_counted_on", "{:.1e}")),
        ("wrong when final", _of("wrong_when_final", "{:.1e}")),
        ("wrong after looking back", _of("wrong_standing", "{:.1e}")),
        ("honest accused, per result", _of("honest_accused_per_result", "{:.1e}")),
        ("unfinished results of the caught, recalled", _of("recalled_of_unfinished", "{:.0%}")),
        ("makespan / fluid bound", _of("makespan_to_fluid", "{:.2f}")),
        ("waste: late and copied", _of("waste", "{:.1%}")),
        ("  of which copies", _of("waste_of_copies", "{:.1%}")),
        ("accepted units", _of("accepted", "{:,}")),
    ]
    for population in scenario.populations:
        if population.kind in CHEATS:
            rows.append((f"{population.name}: caught", _detected(population.name, "caught", "{:.0%}")))
            rows.append((f"{population.name}: median hours", _detected(population.name, "median_hours", "{:.2f}")))
    return rows


def _of(key: str, form: str) -> Callable[[dict[str, Any]], str]:
    return lambda of_policy: _NOTHING if of_policy[key] is None else form.format(of_policy[key])


def _detected(name: str, key: str, form: str) -> Callable[[dict[str, Any]], str]:
    def cell(of_policy: dict[str, Any]) -> str:
        value = of_policy["detection"][name][key]
        return _NOTHING if value is None else form.format(value)

    return cell
