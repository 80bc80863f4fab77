"""What reports and audits say of hosts: their records, their rests, and what is taken back when one is at fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from memgrid.kinds.audit import Zone
from memgrid.log import get_logger
from memgrid.units import HostId, LeaseId, Reason, ReasonCode
from memgrid_coordinator.policy import trust
from memgrid_coordinator.policy.kinds import is_adaptive, spec_in
from memgrid_coordinator.policy.latecomers import is_believed_alone
from memgrid_coordinator.policy.life import Confirmed, Recalled, UnitEvent
from memgrid_coordinator.policy.trust import Check, Judgement, TrustRule
from memgrid_coordinator.records import AuditPurpose, Event, Host, Lease, Unit, WantedAudit
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.store import audits, events, hosts, leases, trust_records

log = get_logger(__name__)
CLASS_WINDOW = timedelta(days=7)
"""How far back the audits of a numerics class are counted."""


def checks_of(
    connection: Connection, host: Host, reported: Sequence[tuple[Lease, Unit]], rule: JudgingRule, now: datetime
) -> list[Check]:
    """What is done about each of these reports of one host, now that they are bound to it."""
    suspended = set(trust_records.suspended(connection))
    before = {
        here: trust_records.get(connection, host.host_id, *here)
        for here in {(unit.kind, lease.numerics_class) for lease, unit in reported}
    }
    records = dict(before)
    checks = []
    for lease, unit in reported:
        here = (unit.kind, lease.numerics_class)
        check = rule.check(lease, unit, records[here], is_class_suspended=here in suspended)
        checks.append(check)
        if not check.is_audited:
            records[here] = trust.after_result(records[here])
    for (kind, numerics_class), record in records.items():
        if record != before[kind, numerics_class]:
            trust_records.put(connection, host, kind, numerics_class, record, now)
    return checks


def note_agreement(connection: Connection, agreed: Iterable[tuple[Lease, str]], now: datetime) -> None:
    """Other accounts agree with these leases, each with the kind of its unit."""
    counts = Counter((lease.host_id, kind, lease.numerics_class) for lease, kind in agreed)
    for (host_id, kind, numerics_class), count in counts.items():
        record = trust_records.get(connection, host_id, kind, numerics_class)
        for _ in range(count):
            record = trust.after_agreement(record)
        trust_records.put(connection, _host(connection, host_id), kind, numerics_class, record, now)


def believed_alone(
    connection: Connection, reported: Iterable[tuple[Lease, str]], rule: TrustRule
) -> frozenset[LeaseId]:
    """Of these reports, each with the kind of its unit, those of hosts that are past their probation."""
    return frozenset(
        lease.lease_id
        for lease, kind in reported
        if is_believed_alone(trust_records.get(connection, lease.host_id, kind, lease.numerics_class), rule)
    )


def is_final_at_once(connection: Connection, lease: Lease, unit: Unit, rule: TrustRule) -> bool:
    """Whether a result stands when its audit passes; a newcomer's waits, unless it is of a kind that can't."""
    if not is_adaptive(spec_in(unit.spec), unit.min_replicas):
        return True
    return trust.is_final_at_once(trust_records.get(connection, lease.host_id, unit.kind, lease.numerics_class), rule)


def after_audit(
    connection: Connection, audited: WantedAudit, zone: Zone, rule: TrustRule, now: datetime
) -> dict[int, UnitEvent]:
    """What an audit that found no fault means for its host, and for what the host reported before.

    A fault is charged when its lease is rejected (`charge`), so that it is charged once, whoever found it. A host
    that was suspicious too often loses this result with the others.
    """
    lease, here = audited.lease, (audited.kind, audited.lease.numerics_class)
    host = _host(connection, lease.host_id)
    record, judgement = trust.after_audit(trust_records.get(connection, lease.host_id, *here), zone, rule)
    if judgement is Judgement.AT_FAULT:
        told = f"{rule.suspicions_max} suspicious audits among the last {rule.suspicion_window}"
        # Who stays just below the limits is not found by looking at single results again: they are computed again.
        return _at_fault(connection, host, lease, audited.kind, told, rule, now, recompute=True)
    trust_records.put(connection, host, *here, record, now)
    if judgement is Judgement.SUSPECTED:
        events.append(connection, [_event("host_suspected", lease, now, detail="counted, not punished")])
        return {}
    return dict.fromkeys(audits.pass_since(connection, audited, rule.final_after), Confirmed())


def charge(
    connection: Connection, rejected: Sequence[tuple[Lease, str, ReasonCode]], rule: TrustRule, now: datetime
) -> dict[int, UnitEvent]:
    """Hold rejected reports against their hosts, as far as they speak against them; returns what is recalled."""
    recalled: dict[int, UnitEvent] = {}
    for lease, kind, code in rejected:
        if code not in trust.FAULTS:
            continue
        host = _host(connection, lease.host_id)
        if lease.facts is None:  # it was turned down at the door: bad form, which says nothing of earlier numbers
            _rest(connection, host, now)
            continue
        recalled |= _at_fault(connection, host, lease, kind, f"lease {lease.lease_id[:8]}: {code.value}", rule, now)
    return recalled


def _at_fault(
    connection: Connection,
    host: Host,
    lease: Lease,
    kind: str,
    told: str,
    rule: TrustRule,
    now: datetime,
    *,
    recompute: bool = False,
) -> dict[int, UnitEvent]:
    """Trust starts again at nothing, and what was taken on trust is taken back or looked at again."""
    here = (kind, lease.numerics_class)
    if _is_class_suspended(connection, *here, rule, now):
        events.append(connection, [_event("fault_forgiven", lease, now, detail=f"{told}; {here[1]} is suspended")])
        return {}
    record, _ = trust.after_audit(trust_records.get(connection, host.host_id, *here), Zone.FAULT, rule)
    trust_records.put(connection, host, *here, record, now)
    _rest(connection, host, now)
    final = leases.by_id(connection, audits.final_of(connection, host.host_id, kind, rule.look_back))
    recalled = audits.provisional_of(connection, host.host_id)
    if recompute:
        recalled += [lease.unit_id, *(each.unit_id for each in final.values())]
        counted = f"{len(recalled)} results recalled"
    else:
        audits.want(connection, [_looked_back_on(each, kind, now) for each in final.values()])
        counted = f"{len(recalled)} results recalled, {len(final)} looked at again"
    events.append(connection, [_event("host_at_fault", lease, now, detail=f"{told}; {counted}")])
    reason = Reason(code=ReasonCode.HOST_AT_FAULT, text=f"its host was found to be at fault: {told}")
    return dict.fromkeys(recalled, Recalled(reason=reason, is_wrong=False))


def _looked_back_on(lease: Lease, kind: str, now: datetime) -> WantedAudit:
    return WantedAudit(lease=lease, kind=kind, purpose=AuditPurpose.LOOK_BACK, due_at=now)


def _is_class_suspended(
    connection: Connection, kind: str, numerics_class: str, rule: TrustRule, now: datetime
) -> bool:
    """Whether so much of a class fails that it is a bug; looked at whenever something fails in it."""
    found = audits.class_record(connection, kind, numerics_class, now - CLASS_WINDOW)
    if not trust.is_class_suspended(found, rule):
        return False
    if trust_records.suspend(connection, kind, numerics_class, found, now):
        log.error("numerics class suspended", kind=kind, numerics_class=numerics_class, failed=found.failed)
        # Those that failed before there were enough of them to see the bug are no worse than the others.
        hosts.forgive(connection, trust_records.forgive(connection, kind, numerics_class))
        detail = f"{numerics_class}: {found.failed} of {found.audits} audits failed, of {found.hosts_failed} hosts"
        events.append(connection, [Event(at=now, name="class_suspended", detail=detail)])
    return True


def resume_classes(connection: Connection, rule: TrustRule, now: datetime) -> int:
    """Punish again where audits pass by now; returns how many classes that are."""
    resumed = 0
    for kind, numerics_class in trust_records.suspended(connection):
        found = audits.class_record(connection, kind, numerics_class, now - CLASS_WINDOW)
        if not trust.is_class_suspended(found, rule):
            resumed += trust_records.resume(connection, kind, numerics_class)
            events.append(connection, [Event(at=now, name="class_resumed", detail=numerics_class)])
    return resumed


def _rest(connection: Connection, host: Host, now: datetime) -> None:
    """One more fault in a row; after a few the host gets no work for a while."""
    # Read anew: several of its reports may be charged in one step.
    faults = _host(connection, host.host_id).recent_faults + 1
    until = trust.suspended_until(faults, now)
    hosts.set_faults(connection, host.host_id, faults, until)
    if until is not None:
        detail = f"{faults} rejected reports in a row; no work until {until:%Y-%m-%d %H:%M:%S} UTC"
        events.append(connection, [Event(at=now, name="host_suspended", host_id=host.host_id, detail=detail)])


def _host(connection: Connection, host_id: HostId) -> Host:
    host = hosts.get_host(connection, host_id)
    assert host is not None, f"lease of an unknown host {host_id}"
    return host


def _event(name: str, lease: Lease, now: datetime, *, detail: str) -> Event:
    return Event(
        at=now,
        name=name,
        unit_id=lease.unit_id,
        lease_id=lease.lease_id,
        host_id=lease.host_id,
        detail=detail,
    )
