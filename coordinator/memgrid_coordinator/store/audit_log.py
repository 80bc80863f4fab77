"""The audit log: what owners and operators did, written in the transaction that did it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from memgrid_coordinator.records import Act, Caller, Role
from memgrid_coordinator.store.tables import audit_log


def note(
    connection: Connection, caller: Caller, action: str, subject: str, now: datetime, *, detail: str = ""
) -> None:
    """Keep that the caller did this."""
    named = {"at": now, "who": caller.name, "role": caller.role, "action": action, "subject": subject}
    connection.execute(insert(audit_log).values(**named, detail=detail))


def newest(connection: Connection, limit: int) -> list[Act]:
    query = select(audit_log).order_by(audit_log.c.entry_id.desc()).limit(limit)
    return [_act(row) for row in connection.execute(query)]


def _act(row: Any) -> Act:
    return Act(at=row.at, who=row.who, role=Role(row.role), action=row.action, subject=row.subject, detail=row.detail)
