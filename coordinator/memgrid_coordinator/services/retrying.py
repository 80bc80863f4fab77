"""Try failed documents again, from where they stood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from memgrid.errors import InvalidError
from memgrid_coordinator.lifecycle import CampaignState, DocumentState, UnitState
from memgrid_coordinator.policy.retries import would_help
from memgrid_coordinator.records import Caller, CampaignId, Document, Event
from memgrid_coordinator.store import audit_log, campaigns, events, units

_NAMED = 5


def retry(
    connection: Connection, caller: Caller, campaign_id: CampaignId, names: Sequence[str], now: datetime
) -> tuple[list[Document], list[Document]]:
    """One step: the documents that run again, and those left because they would only fail again.

    Raises InvalidError when the campaign was cancelled, or has no document of such a name.
    """
    if campaigns.state_of(connection, campaign_id) is CampaignState.CANCELLED:
        raise InvalidError(f"campaign {campaign_id[:12]} was cancelled: submit it again, what was accepted is reused")
    found = campaigns.documents_of(connection, campaign_id)
    unknown = sorted(set(names) - {document.name for document in found})
    if unknown:
        raise InvalidError(f"campaign {campaign_id[:12]} has no document {unknown[0][:80]!r}")
    failed = [one for one in found if one.state is DocumentState.FAILED and (not names or one.name in names)]
    tried = [document for document in failed if would_help(document.reason)]
    left = [document for document in failed if not would_help(document.reason)]
    tried = [one for one in tried if campaigns.retry_document(connection, one.document_id)]
    if tried:
        campaigns.move(connection, campaign_id, "retry", now)
        _revive(
            connection, [unit_id for one in tried for unit_id in campaigns.units_of(connection, one.document_id)], now
        )
        campaigns.hold_units(connection, campaign_id)
        told = [_event(campaign_id, document, now) for document in tried]
        events.append(connection, told)
        audit_log.note(connection, caller, "campaign_retry", campaign_id, now, detail=in_words(tried))
    return tried, left


def in_words(documents: Sequence[Document]) -> str:
    """Their names, unless there are too many."""
    names = ", ".join(document.name for document in documents[:_NAMED])
    return f"{names} and {len(documents) - _NAMED} more" if len(documents) > _NAMED else names


def _revive(connection: Connection, unit_ids: Iterable[int], now: datetime) -> None:
    """Units without a result get another chance; those that nothing stands in the way of open at once."""
    found = units.by_id(connection, dict.fromkeys(unit_ids))
    lost = [unit.unit_id for unit in found.values() if unit.state in (UnitState.FAILED, UnitState.CANCELLED)]
    units.revive(connection, lost)
    opened = units.openable(connection, lost)
    units.open_units(connection, opened, now)
    events.append(connection, [Event(at=now, name="unit_opened", unit_id=unit_id) for unit_id in opened])


def _event(campaign_id: CampaignId, document: Document, now: datetime) -> Event:
    why = f"{document.name}: had failed" if document.reason is None else f"{document.name}: {document.reason.text}"
    return Event(at=now, name="document_retried", campaign_id=campaign_id, detail=why)
