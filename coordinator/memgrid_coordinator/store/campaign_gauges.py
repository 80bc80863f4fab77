"""What the gauges say of campaigns: sums over the few that are looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Float, Row, Select, cast, func, or_, select

from memgrid_coordinator.lifecycle import ENDED_UNITS, CampaignState, DocumentState, LeaseState, UnitState
from memgrid_coordinator.progress import Progress
from memgrid_coordinator.store.campaigns import eta_s
from memgrid_coordinator.store.tables import campaigns, document_units, documents, leases, units


@dataclass(slots=True, kw_only=True)
class CampaignGauges:
    """One campaign, counted; the FLOPs done, left and ahead count every replica, those produced each unit once."""

    campaign_id: str
    name: str
    state: CampaignState
    units: dict[str, int] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    tokens_accepted: int = 0
    produced_flops: float = 0.0
    spent_flops: float = 0.0
    rejected_flops: float = 0.0
    done_flops: float = 0.0
    left_flops: float = 0.0
    ahead_flops: list[int] = field(default_factory=list)
    """Of each document in stages, what will be asked beyond the units that exist."""
    device_s: float = 0.0
    eta_s: float | None = None

    @property
    def progress(self) -> float:
        """Share of the work that is done, replicas included, as far as it is known.

        >>> one = CampaignGauges(campaign_id="1", name="a", state=CampaignState.RUNNING, done_flops=1, left_flops=3)
        >>> one.progress
        0.25
        """
        if self.state is CampaignState.COMPLETED:
            return 1.0
        whole = self.done_flops + self.left_flops + sum(self.ahead_flops)
        return self.done_flops / whole if whole else 0.0


def read(
    connection: Connection, *, ended_since: datetime, fleet: Sequence[float], limit: int
) -> list[CampaignGauges]:
    """The newest campaigns that run, are paused or ended lately; `fleet` as for their time left."""
    found = {row.campaign_id: _begin(row) for row in _chosen(connection, ended_since, limit)}
    for one in found.values():
        _add_units(connection, one)
        _add_leases(connection, one)
    _add_documents(connection, found)
    for one in found.values():
        one.eta_s = eta_s(one.left_flops, one.ahead_flops, fleet)
    return list(found.values())


def _chosen(connection: Connection, ended_since: datetime, limit: int) -> Sequence[Row[Any, Any, Any]]:
    unended = campaigns.c.state.in_((CampaignState.RUNNING, CampaignState.PAUSED))
    query = (
        select(campaigns.c.campaign_id, campaigns.c.name, campaigns.c.state)
        .where(or_(unended, campaigns.c.ended_at >= ended_since))
        .order_by(unended.desc(), campaigns.c.created_at.desc())
        .limit(limit)
    )
    return connection.execute(query).all()


def _begin(row: Any) -> CampaignGauges:
    return CampaignGauges(campaign_id=row.campaign_id, name=row.name, state=CampaignState(row.state))


def _add_units(connection: Connection, one: CampaignGauges) -> None:
    query = (
        select(
            units.c.state,
            func.count(),
            func.sum(units.c.token_count),
            func.sum(_FLOPS),
            func.sum(_FLOPS * units.c.min_replicas),
        )
        .where(units.c.unit_id.in_(_theirs(one)))
        .group_by(units.c.state)
    )
    for state, count, tokens, flops, all_flops in connection.execute(query):
        one.units[state] = count
        one.tokens += int(tokens)
        if state == UnitState.ACCEPTED:
            one.tokens_accepted, one.produced_flops, one.done_flops = int(tokens), float(flops), float(all_flops)
        elif state not in ENDED_UNITS:
            one.left_flops += float(all_flops)


def _add_leases(connection: Connection, one: CampaignGauges) -> None:
    query = (
        select(leases.c.state, func.count(), func.sum(_FLOPS), func.sum(leases.c.compute_s))
        .join(units, units.c.unit_id == leases.c.unit_id)
        .where(leases.c.unit_id.in_(_theirs(one)))
        .group_by(leases.c.state)
    )
    for state, count, flops, seconds in connection.execute(query):
        one.leases[state] = count
        one.device_s += float(seconds)
        if state in _COMPUTED:
            one.spent_flops += float(flops)
        if state == LeaseState.REJECTED:
            one.rejected_flops = float(flops)


def _add_documents(connection: Connection, found: dict[str, CampaignGauges]) -> None:
    theirs = documents.c.campaign_id.in_(list(found))
    counts = select(documents.c.campaign_id, documents.c.state, func.count()).where(theirs)
    for campaign_id, state, count in connection.execute(counts.group_by(documents.c.campaign_id, documents.c.state)):
        found[campaign_id].documents[state] = count
    staged = select(documents.c.campaign_id, documents.c.progress).where(
        theirs, documents.c.state == DocumentState.RUNNING, documents.c.progress != ""
    )
    ahead: dict[str, list[int]] = defaultdict(list)
    for campaign_id, progress in connection.execute(staged):
        ahead[campaign_id].append(Progress.from_text(progress).ahead_flops)
    for campaign_id, flops in ahead.items():
        found[campaign_id].ahead_flops = flops


# Their sum can pass what 64 bits hold, and SQLite would rather say nothing at all then.
_FLOPS = cast(units.c.flops, Float(53))
_COMPUTED = (LeaseState.REPORTED, LeaseState.AGREED, LeaseState.REJECTED)


def _theirs(one: CampaignGauges) -> Select[int]:
    """The units that a campaign wants; a unit counts once, however many documents of it want it.

    Asked campaign by campaign: the units of all of them at once would fill the memory that sums need none of.
    """
    query = select(document_units.c.unit_id).join(documents, documents.c.document_id == document_units.c.document_id)
    return query.where(documents.c.campaign_id == one.campaign_id)
