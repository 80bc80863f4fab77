"""Run a scenario: its policies one after the other, the parts of its grid side by side on several processes."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from random import Random

from memgrid_coordinator.simulation.adaptive import Adaptive
from memgrid_coordinator.simulation.answers import Answers
from memgrid_coordinator.simulation.books import Books
from memgrid_coordinator.simulation.fluid import fluid_s
from memgrid_coordinator.simulation.grid import Grid, Policy
from memgrid_coordinator.simulation.hosts import Fleet
from memgrid_coordinator.simulation.others import BoincAdaptive, Poco, Quorum2
from memgrid_coordinator.simulation.scenario import PolicyName, Scenario, rule_of
from memgrid_coordinator.simulation.tally import Tally
from memgrid_coordinator.simulation.units import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the grid under one policy: what a process is given."""

    scenario: Scenario
    policy: PolicyName
    number: int
    """From nought up to the number of parts."""
    parts: int


def parts_of(scenario: Scenario) -> list[Part]:
    """Everything there is to simulate."""
    count = math.ceil(scenario.hosts / scenario.partition_hosts)
    return [
        Part(scenario=scenario, policy=policy, number=number, parts=count)
        for policy in scenario.policies
        for number in range(count)
    ]


def simulate(
    scenario: Scenario, *, processes: int = 1, on_part: Callable[[Part], None] = lambda part: None
) -> dict[PolicyName, Tally]:
    """What becomes of the scenario under each policy: the same for a seed, whatever the number of processes."""
    parts = parts_of(scenario)
    tallies: list[Tally | None] = [None] * len(parts)
    if processes == 1:
        for at, part in enumerate(parts):
            tallies[at] = simulated(part)
            on_part(part)
    else:
        # Spawned, because a fork would copy whatever threads the caller has.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=processes, mp_context=context) as pool:
            running: dict[Future[Tally], int] = {pool.submit(simulated, part): at for at, part in enumerate(parts)}
            for future in as_completed(running):
                tallies[running[future]] = future.result()
                on_part(parts[running[future]])
    summed: dict[PolicyName, Tally] = {}
    for part, tally in zip(parts, tallies, strict=True):
        assert tally is not None
        if part.policy in summed:
            summed[part.policy].add(tally)
        else:
            summed[part.policy] = tally
    return summed


def simulated(part: Part) -> Tally:
    """Simulate one part. Hosts, their hours and the units are the same for every policy."""
    scenario = part.scenario
    seed = f"{scenario.seed}/{part.number}"
    fleet = _fleet(part)
    works = [
        Work(campaign, None if campaign.units is None else _share(campaign.units, part), Random(f"{seed}/{at}"), at)
        for at, campaign in enumerate(scenario.campaigns)
    ]
    works.sort(key=lambda work: work.arrives_s)
    books = Books(scenario.days, works, scenario.audits.cost)
    grid = Grid(scenario, fleet, works, books, Random(f"{seed}/{part.policy}"))
    policy = _policy(part.policy, grid)
    if isinstance(policy, Quorum2):
        for work in works:
            work.min_replicas = 2
    elif not isinstance(policy, Adaptive):
        for work in works:
            work.min_replicas = 1
    if any(work.units is not None for work in works):
        books.tally.fluid_s = fluid_s(_fleet(part).hosts, works, 86400 * scenario.days)
    grid.run(policy, Answers(scenario.audits, Random(f"{seed}/{part.policy}/answers"), policy.is_trusted))
    for work in works:
        books.tally.provisional += work.provisional
    return books.tally


def _fleet(part: Part) -> Fleet:
    """The hosts of a part, the same whenever they are made."""
    scenario = part.scenario
    return Fleet(scenario, _share(scenario.hosts, part), Random(f"{scenario.seed}/{part.number}/hosts"))


def _policy(name: PolicyName, grid: Grid) -> Policy:
    if name is PolicyName.MEMGRID:
        return Adaptive(grid, rule_of(grid.scenario.trust))
    if name is PolicyName.QUORUM2:
        return Quorum2(grid)
    return BoincAdaptive(grid) if name is PolicyName.BOINC_ADAPTIVE else Poco(grid)


def _share(total: int, part: Part) -> int:
    """This part's share of something that is counted."""
    return total * (part.number + 1) // part.parts - total * part.number // part.parts
