"""What a grid measured of its models: the last calibration of each counts, the others stay as they were."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select

from memgrid.digest import Digest
from memgrid_coordinator.store.tables import calibrations


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`tolerances` and `evidence` are content: a table of limits, and what it was drawn from."""

    model: Digest
    tolerances: Digest
    evidence: Digest
    made_at: datetime


def add(connection: Connection, calibration: Calibration) -> None:
    connection.execute(
        insert(calibrations).values(
            model=calibration.model,
            digest=calibration.tolerances,
            evidence=calibration.evidence,
            made_at=calibration.made_at,
        )
    )


def latest(connection: Connection, model: Digest) -> Calibration | None:
    """The one that counts; None for a model that was never calibrated here."""
    query = select(calibrations).where(calibrations.c.model == model)
    row = connection.execute(query.order_by(calibrations.c.calibration_id.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    return Calibration(
        model=Digest(row.model),
        tolerances=Digest(row.digest),
        evidence=Digest(row.evidence),
        made_at=row.made_at,
    )
