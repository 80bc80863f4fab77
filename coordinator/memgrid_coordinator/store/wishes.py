"""What hosts wish, as conditions on units."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, exists, select

from memgrid.units import Wishes
from memgrid_coordinator.store.tables import campaigns, document_units, documents, units


def wished(wishes: Wishes, flops_per_s: float) -> list[ColumnElement[bool]]:
    """Conditions that a unit has to meet; none for a host that takes anything. `flops_per_s`: its speed."""
    conditions: list[ColumnElement[bool]] = []
    if wishes.kinds:
        conditions.append(units.c.kind.in_(sorted(wishes.kinds)))
    if wishes.campaigns:
        conditions.append(_wanted_by(wishes.campaigns))
    if wishes.avoided_campaigns:
        conditions.append(~_wanted_by(wishes.avoided_campaigns))
    if wishes.longest is not None:
        conditions.append(units.c.flops <= int(wishes.longest.total_seconds() * flops_per_s))
    return conditions


def which_are_wished(
    connection: Connection, unit_ids: Iterable[int], wishes: Wishes, flops_per_s: float
) -> frozenset[int]:
    """Those of some units that a host with these wishes may be given."""
    wanted = list(unit_ids)
    if not wanted or not wishes.are_picky:
        return frozenset(wanted)
    query = select(units.c.unit_id).where(units.c.unit_id.in_(wanted), *wished(wishes, flops_per_s))
    return frozenset(connection.execute(query).scalars())


def _wanted_by(names: Iterable[str]) -> ColumnElement[bool]:
    """A unit belongs to every campaign that wants it: whoever computes it works for all of them."""
    listed = sorted(names)
    return exists().where(
        document_units.c.unit_id == units.c.unit_id,
        documents.c.document_id == document_units.c.document_id,
        campaigns.c.campaign_id == documents.c.campaign_id,
        campaigns.c.campaign_id.in_(listed) | campaigns.c.name.in_(listed),
    )
