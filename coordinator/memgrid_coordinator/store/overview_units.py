"""Units for those who have computed them: how each stands, and which cubes it went into."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from memgrid.units import UnitKey
from memgrid_coordinator.lifecycle import DocumentState, UnitState
from memgrid_coordinator.records import CampaignId
from memgrid_coordinator.store.tables import campaigns, document_units, documents, units
from memgrid_coordinator.views import UnitCube, UnitView

CUBES_MAX = 20
"""Of one unit: a text that everybody's campaign has may be in thousands."""


def of_keys(connection: Connection, keys: Sequence[UnitKey]) -> tuple[UnitView, ...]:
    """Those of the units that this grid knows, with the documents that need them, the newest first."""
    query = select(units.c.unit_id, units.c.key, units.c.kind, units.c.state).where(units.c.key.in_(list(keys)))
    return tuple(
        UnitView(
            key=UnitKey(row.key),
            kind=row.kind,
            state=UnitState(row.state),
            cubes=_cubes(connection, row.unit_id),
        )
        for row in connection.execute(query.order_by(units.c.unit_id))
    )


def _cubes(connection: Connection, unit_id: int) -> tuple[UnitCube, ...]:
    query = (
        select(documents.c.cube, documents.c.state, campaigns.c.campaign_id, campaigns.c.name)
        .join(document_units, document_units.c.document_id == documents.c.document_id)
        .join(campaigns, campaigns.c.campaign_id == documents.c.campaign_id)
        .where(document_units.c.unit_id == unit_id)
        .order_by(documents.c.document_id.desc())
        .limit(CUBES_MAX)
    )
    return tuple(
        UnitCube(
            reference=row.cube if row.state == DocumentState.PUBLISHED else "",
            state=DocumentState(row.state),
            campaign_id=CampaignId(row.campaign_id),
            campaign_name=row.name,
        )
        for row in connection.execute(query)
    )
