"""What audits have shown of each host, and the numerics classes whose hosts are not punished for now."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from memgrid.kinds.audit import Zone
from memgrid.units import AccountId, HostId
from memgrid_coordinator.policy.trust import NEWCOMER, ClassRecord, TrustRecord
from memgrid_coordinator.records import Host
from memgrid_coordinator.store.tables import class_suspensions, trust_records

_LETTERS = {Zone.PASS: "p", Zone.SUSPICIOUS: "s", Zone.FAULT: "f"}
_ZONES = {letter: zone for zone, letter in _LETTERS.items()}


def get(connection: Connection, host_id: HostId, kind: str, numerics_class: str) -> TrustRecord:
    """The record of one host, kind and class; a newcomer's when nothing is known."""
    row = connection.execute(_GET, {"of_host": host_id, "of_kind": kind, "of_class": numerics_class}).one_or_none()
    if row is None:
        return NEWCOMER
    recent = tuple(_ZONES[letter] for letter in row.recent)
    return TrustRecord(results=row.results, passed=row.passed, faults=row.faults, recent=recent, agreed=row.agreed)


def put(
    connection: Connection, host: Host, kind: str, numerics_class: str, record: TrustRecord, now: datetime
) -> None:
    """Write a record down, whether there was one or not."""
    key = {"of_host": host.host_id, "of_kind": kind, "of_class": numerics_class}
    values = {
        "results": record.results,
        "passed": record.passed,
        "faults": record.faults,
        "recent": "".join(_LETTERS[zone] for zone in record.recent),
        "agreed": record.agreed,
        "updated_at": now,
    }
    if not connection.execute(_UPDATE, {**key, **{f"new_{name}": value for name, value in values.items()}}).rowcount:
        named = {"host_id": host.host_id, "kind": kind, "numerics_class": numerics_class}
        connection.execute(_INSERT, {**named, "account_id": host.account_id, **values})


def good_of(connection: Connection, account_id: AccountId) -> int:
    """Audits that an account's best record has passed, or results agreed with: what its quota follows from."""
    good = trust_records.c.passed + trust_records.c.agreed
    query = select(func.max(good)).where(trust_records.c.account_id == account_id)
    return int(connection.execute(query).scalar() or 0)


def of_host(connection: Connection, host_id: HostId) -> dict[tuple[str, str], TrustRecord]:
    """All records of a host, by kind and numerics class."""
    query = select(trust_records.c.kind, trust_records.c.numerics_class).where(trust_records.c.host_id == host_id)
    return {
        (row.kind, row.numerics_class): get(connection, host_id, row.kind, row.numerics_class)
        for row in connection.execute(query.order_by(trust_records.c.kind, trust_records.c.numerics_class))
    }


def is_suspended(connection: Connection, kind: str, numerics_class: str) -> bool:
    """Whether hosts of this class go unpunished."""
    here = (class_suspensions.c.kind == kind, class_suspensions.c.numerics_class == numerics_class)
    return connection.execute(select(class_suspensions.c.since).where(*here)).scalar() is not None


def suspend(connection: Connection, kind: str, numerics_class: str, found: ClassRecord, now: datetime) -> bool:
    """Punish nobody of this class for now; False when that is so already."""
    if is_suspended(connection, kind, numerics_class):
        return False
    counts = {"audits": found.audits, "failed": found.failed, "hosts": found.hosts}
    row = {"kind": kind, "numerics_class": numerics_class, "since": now, **counts}
    connection.execute(insert(class_suspensions).values(row))
    return True


def forgive(connection: Connection, kind: str, numerics_class: str) -> list[HostId]:
    """Forget the faults of a class; returns the hosts that had some."""
    here = (
        trust_records.c.kind == kind,
        trust_records.c.numerics_class == numerics_class,
        trust_records.c.faults > 0,
    )
    found = connection.execute(select(trust_records.c.host_id).where(*here)).scalars()
    forgiven = [HostId(host_id) for host_id in found]
    connection.execute(update(trust_records).where(*here).values(faults=0))
    return forgiven


def resume(connection: Connection, kind: str, numerics_class: str) -> bool:
    """Punish again; False when there was no suspension."""
    here = (class_suspensions.c.kind == kind, class_suspensions.c.numerics_class == numerics_class)
    return connection.execute(delete(class_suspensions).where(*here)).rowcount == 1


def suspended(connection: Connection) -> list[tuple[str, str]]:
    """Kind and numerics class of every suspension."""
    query = select(class_suspensions.c.kind, class_suspensions.c.numerics_class)
    return [(row.kind, row.numerics_class) for row in connection.execute(query)]


# The statements of the hot path are built once: building one costs more than running it.
_HERE = (
    trust_records.c.host_id == bindparam("of_host"),
    trust_records.c.kind == bindparam("of_kind"),
    trust_records.c.numerics_class == bindparam("of_class"),
)
_GET = select(trust_records).where(*_HERE)
_INSERT = insert(trust_records)
_UPDATE = (
    update(trust_records)
    .where(*_HERE)
    .values(
        results=bindparam("new_results"),
        passed=bindparam("new_passed"),
        faults=bindparam("new_faults"),
        recent=bindparam("new_recent"),
        agreed=bindparam("new_agreed"),
        updated_at=bindparam("new_updated_at"),
    )
)
