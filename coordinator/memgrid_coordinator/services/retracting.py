"""Take published cubes back when a result in them was found to be wrong, and have their documents made again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from memgrid.log import get_logger
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.lifecycle import CampaignState
from memgrid_coordinator.records import Event
from memgrid_coordinator.store import campaigns, events, retractions

log = get_logger(__name__)


def retract(connection: Connection, unit_ids: Sequence[int], why: str, now: datetime) -> list[str]:
    """Every cube that holds the result of one of these units leaves the pool; returns their names."""
    reason = Reason(code=ReasonCode.RETRACTED, text=f"a result in it was found to be wrong: {why}")
    names = []
    for document in retractions.published_with(connection, unit_ids):
        assert document.cube_digest is not None, f"document {document.document_id} is published"
        names += retractions.retract(connection, document.cube_digest, reason, now)
        campaigns.move(connection, document.campaign_id, "reopen", now)
        can_run = campaigns.state_of(connection, document.campaign_id) in _GOES_ON
        retractions.run_again(connection, document.document_id, reason, can_run=can_run)
        told = Event(
            at=now,
            name="cube_retracted",
            campaign_id=document.campaign_id,
            cube_digest=document.cube_digest,
            reason=reason,
            detail=document.cube,
        )
        events.append(connection, [told])
        log.warning("cube retracted", cube=document.cube, digest=document.cube_digest, reason=reason.text)
    return names


_GOES_ON = (CampaignState.RUNNING, CampaignState.PAUSED)
