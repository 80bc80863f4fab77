"""Ask hosts for units: create what nobody asked for before, and want more of what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from sqlalchemy import Connection

from memgrid.campaign import CampaignFile
from memgrid.digest import Digest
from memgrid.kinds.registry import kind_named
from memgrid.units import UnitKey
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.records import Demand, Event, NewUnit, Unit
from memgrid_coordinator.store import calibrations, events, units

_ASKED_AT_ONCE = 5000
"""Units that one statement names: neither database takes any number of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Units by key, and how many of them had a result already."""

    unit_ids: dict[UnitKey, int]
    reused: int
    opened: int


def ask_for(connection: Connection, wanted: Sequence[NewUnit], campaign: CampaignFile, now: datetime) -> Asked:
    """Have each of these once, parents before their children, open where nothing stands in the way."""
    unique = list({unit.key: unit for unit in wanted}.values())
    unit_ids: dict[UnitKey, int] = {}
    reused = opened = 0
    for start in range(0, len(unique), _ASKED_AT_ONCE):
        asked = _ask_for(connection, unique[start : start + _ASKED_AT_ONCE], campaign, now)
        unit_ids |= asked.unit_ids
        reused += asked.reused
        opened += asked.opened
    return Asked(unit_ids=unit_ids, reused=reused, opened=opened)


def _ask_for(connection: Connection, wanted: Sequence[NewUnit], campaign: CampaignFile, now: datetime) -> Asked:
    asked = {unit.key: unit for unit in wanted}
    known = units.by_key(connection, list(asked))
    new = [unit for key, unit in asked.items() if key not in known]
    calibrated = {model for model in {one.model for one in wanted} if calibrations.latest(connection, model)}
    for (kind, model), alike in groupby(new, lambda unit: (unit.kind, unit.model)):
        units.add(connection, list(alike), _demand_for(kind, campaign, is_calibrated=model in calibrated))
    lost = [unit.unit_id for unit in known.values() if unit.state in (UnitState.FAILED, UnitState.CANCELLED)]
    collected = [unit.unit_id for unit in known.values() if not has_result(unit) and unit.state is UnitState.ACCEPTED]
    if known:
        units.revive(connection, lost)
        units.take_up_again(connection, collected)
    running: dict[tuple[str, Digest], list[int]] = {}
    for unit in known.values():
        if not has_result(unit):
            running.setdefault((unit.kind, unit.model), []).append(unit.unit_id)
    for (kind, model), unit_ids in running.items():
        units.demand_more(connection, unit_ids, _demand_for(kind, campaign, is_calibrated=model in calibrated))
        units.release(connection, unit_ids)
    every = units.ids_by_key(connection, list(asked))
    opened = units.openable(connection, list(every.values()))
    units.open_units(connection, opened, now)
    events.append(connection, [Event(at=now, name="unit_opened", unit_id=unit_id) for unit_id in opened])
    reused = sum(1 for unit in known.values() if has_result(unit))
    return Asked(unit_ids=every, reused=reused, opened=len(opened))


def _demand_for(kind: str, campaign: CampaignFile, *, is_calibrated: bool) -> Demand:
    """A kind that can be audited in part is computed once, as soon as somebody has measured what to expect."""
    trust = campaign.trust
    return Demand(
        priority=campaign.priority,
        min_replicas=trust.replicas(audited=is_calibrated or kind_named(kind).is_audited),
        max_replicas=trust.max_replicas,
        epsilon=trust.epsilon,
        f_bar=trust.f_bar,
    )


def has_result(unit: Unit) -> bool:
    """Whether nobody has to compute it: results that nobody wanted any more have been let go."""
    return unit.state is UnitState.ACCEPTED and unit.output_digest is not None
