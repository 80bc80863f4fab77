"""The door for reports: what is refused before anything is compared, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from memgrid.digest import Digest
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.refusal import RefusedError
from memgrid.signing import SignedBody
from memgrid.units import ComputeDtype, LeaseId, Reason, ReasonCode, ReportAck, ReportClaim
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.policy import latecomers
from memgrid_coordinator.policy.deadlines import corrected_speed
from memgrid_coordinator.policy.kinds import is_adaptive, kind_in, spec_in
from memgrid_coordinator.policy.life import UnitEvent
from memgrid_coordinator.records import Event, Host, Lease, Unit
from memgrid_coordinator.services import trusting
from memgrid_coordinator.services.catalogue import Catalogue
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.store import events, hosts, leases, units

REPLICAS_WHEN_DRAWN = 2
OTHERS_HEARD_WITHIN = timedelta(minutes=10)
_ENDS_THE_LEASE = frozenset(
    {ReasonCode.WRONG_OUTPUTS, ReasonCode.WRONG_SHAPE, ReasonCode.BAD_SKETCH, ReasonCode.NOT_FINITE}
)
"""The host did answer, and the answer is worthless: somebody else gets the unit at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What came of a batch: an answer for each report, and the units to look at again."""

    acks: tuple[ReportAck, ...] = ()
    changed: tuple[int, ...] = ()
    follows: dict[int, UnitEvent] = field(default_factory=dict)
    """What happens to other units of the host because of worthless reports."""
    lease_s: tuple[float, ...] = ()
    """How long the reported leases had been out."""


def take_reports(
    connection: Connection,
    host: Host,
    signed: SignedBody,
    claims: Sequence[ReportClaim],
    sketches: Mapping[Digest, bytes],
    catalogue: Catalogue,
    rule: JudgingRule,
    now: datetime,
) -> Taken:
    """Write the good reports, end the leases of worthless ones, and say why for each that is turned down."""
    held = leases.by_id(connection, [claim.lease_id for claim in claims])
    found = units.by_id(connection, {lease.unit_id for lease in held.values()})
    late = _late(connection, held.values(), found, now)
    acks: list[ReportAck] = []
    good: list[tuple[ReportClaim, bytes]] = []
    worthless: list[tuple[Lease, Reason]] = []
    seen: set[LeaseId] = set()
    for claim in claims:
        lease = held.get(claim.lease_id)
        reason = _turn_down(claim, lease, host, late)
        if reason is None and claim.lease_id in seen:
            reason = Reason(code=ReasonCode.ALREADY_REPORTED, text="twice in one batch")
        if reason is None and lease is not None:
            seen.add(claim.lease_id)
            unit = found[lease.unit_id]
            try:
                _check_content(claim, unit, sketches, catalogue.geometry(connection, unit.model))
                good.append((claim, sketches[claim.sketch_digest]))
            except RefusedError as refusal:
                reason = refusal.reason
                if reason.code in _ENDS_THE_LEASE:
                    worthless.append((lease, reason))
        accepted = reason is None or reason.code is ReasonCode.ALREADY_REPORTED
        acks.append(ReportAck(lease_id=claim.lease_id, accepted=accepted, reason=reason))
    follows = _write(connection, host, signed, good, worthless, held, found, rule, now)
    changed = [held[claim.lease_id].unit_id for claim, _ in good] + [lease.unit_id for lease, _ in worthless]
    return Taken(
        acks=tuple(acks),
        changed=tuple(changed),
        follows=follows,
        lease_s=tuple((now - held[claim.lease_id].granted_at).total_seconds() for claim, _ in good),
    )


def _late(
    connection: Connection, held: Iterable[Lease], found: Mapping[int, Unit], now: datetime
) -> frozenset[LeaseId]:
    """Of these, the leases that the grid ended and whose reports are taken all the same."""
    ended = [lease for lease in held if lease.state is LeaseState.CANCELLED]
    of_unit = leases.of_units(connection, {lease.unit_id for lease in ended}) if ended else {}
    return frozenset(
        lease.lease_id
        for lease in ended
        if latecomers.is_still_taken(lease, found[lease.unit_id], of_unit[lease.unit_id], now)
    )


def _turn_down(
    claim: ReportClaim, lease: Lease | None, host: Host, late: frozenset[LeaseId] = frozenset()
) -> Reason | None:
    """Why this host can't report this lease now; None when it can."""
    if lease is None:
        return Reason(code=ReasonCode.UNKNOWN_LEASE, text=f"there is no lease {claim.lease_id}")
    if lease.host_id != host.host_id:
        return Reason(code=ReasonCode.NOT_YOUR_LEASE, text=f"lease {claim.lease_id} belongs to another host")
    if lease.fence != claim.fence:
        text = f"lease {claim.lease_id} has fence {lease.fence}, the report says {claim.fence}"
        return Reason(code=ReasonCode.STALE_FENCE, text=text)
    if lease.unit_key != claim.unit_key:
        return Reason(code=ReasonCode.WRONG_UNIT, text=f"lease {claim.lease_id} is of unit {lease.unit_key[:12]}")
    if lease.state is LeaseState.LEASED or lease.lease_id in late:
        return None
    if lease.reported_at is not None:
        if lease.outputs == claim.outputs:
            return Reason(code=ReasonCode.ALREADY_REPORTED, text="this report is on disk")
        return Reason(
            code=ReasonCode.CONFLICTING_REPORT, text=f"lease {claim.lease_id} was reported otherwise before"
        )
    if lease.state is LeaseState.EXPIRED:
        text = f"lease {claim.lease_id} ran out at {lease.deadline_at:%H:%M:%S} UTC"
        return Reason(code=ReasonCode.LEASE_EXPIRED, text=text)
    return Reason(code=ReasonCode.LEASE_ENDED, text=f"lease {claim.lease_id} is {lease.state}")


def _check_content(claim: ReportClaim, unit: Unit, sketches: Mapping[Digest, bytes], geometry: ModelGeometry) -> None:
    """Raises RefusedError when the report can't be an answer to its unit, whatever the numbers."""
    spec, kind = kind_in(unit.spec)
    dtype = claim.facts.compute_dtype
    if dtype is ComputeDtype.AUTO or spec.compute_dtype not in (ComputeDtype.AUTO, dtype):
        raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"expected compute dtype {spec.compute_dtype}, found {dtype}")
    sketch = sketches.get(claim.sketch_digest)
    if sketch is None:
        raise RefusedError(ReasonCode.BAD_SKETCH, "the sketch named by the report did not come with it")
    names = [output.name for output in claim.outputs]
    if not names or len(set(names)) != len(names):
        raise RefusedError(ReasonCode.WRONG_OUTPUTS, f"expected outputs, each once, found {', '.join(names)[:200]}")
    kind.check_claim(spec, claim.outputs, sketch, geometry)


def _write(
    connection: Connection,
    host: Host,
    signed: SignedBody,
    good: Sequence[tuple[ReportClaim, bytes]],
    worthless: Sequence[tuple[Lease, Reason]],
    held: Mapping[LeaseId, Lease],
    found: Mapping[int, Unit],
    rule: JudgingRule,
    now: datetime,
) -> dict[int, UnitEvent]:
    log = []
    if good:
        statement_id = leases.add_statement(connection, host.host_id, signed.body, signed.signature, now)
        drawn = _draw(connection, host, [claim for claim, _ in good], held, found, rule, now)
        reported = [
            leases.Reported(
                claim=claim,
                sketch=sketch,
                compute_s=_seconds(claim, held[claim.lease_id], now),
                is_drawn=claim.lease_id in drawn,
            )
            for claim, sketch in good
        ]
        leases.report(connection, reported, statement_id=statement_id, now=now)
        speed = host.flops_per_s
        for claim, _ in good:
            lease = held[claim.lease_id]
            speed = corrected_speed(speed, found[lease.unit_id].flops, claim.facts.compute_s)
            log.append(_event("report_received", lease, now, detail=_work(claim)))
        hosts.set_speed(connection, host.host_id, speed)
    for lease, reason in worthless:
        leases.move(connection, [lease.lease_id], "reject", reason)
        log.append(_event("report_refused", lease, now, reason=reason))
    charged = [(lease, found[lease.unit_id].kind, reason.code) for lease, reason in worthless]
    follows = trusting.charge(connection, charged, rule.trust, now)
    events.append(connection, log)
    return follows


def _draw(
    connection: Connection,
    host: Host,
    claims: Sequence[ReportClaim],
    held: Mapping[LeaseId, Lease],
    found: Mapping[int, Unit],
    rule: JudgingRule,
    now: datetime,
) -> frozenset[LeaseId]:
    """Which of these are audited; where somebody else computes a unit too, that is wanted from now on."""
    reported = [
        (replace(held[claim.lease_id], outputs=claim.outputs, facts=claim.facts), found[held[claim.lease_id].unit_id])
        for claim in claims
    ]
    adaptive = [
        (lease, unit)
        for lease, unit in reported
        if unit.state is UnitState.OPEN and is_adaptive(spec_in(unit.spec), unit.min_replicas)
    ]
    if not adaptive:
        return frozenset()
    checks = trusting.checks_of(connection, host, adaptive, rule, now)
    drawn = list(zip(adaptive, checks, strict=True))
    twice = [unit.unit_id for (_, unit), check in drawn if check.is_replicated]
    # Where nobody else is there, a unit that waits for somebody else would wait for ever.
    if twice and not hosts.is_alone(connection, host, now - OTHERS_HEARD_WITHIN):
        units.want_replicas(connection, twice, REPLICAS_WHEN_DRAWN)
    return frozenset(lease.lease_id for (lease, _), check in drawn if check.is_audited)


def _seconds(claim: ReportClaim, lease: Lease, now: datetime) -> float:
    """What the host says it took: never longer than it had, for budgets are spent by it."""
    return min(max(claim.facts.compute_s, 0.0), (now - lease.granted_at).total_seconds())


def _work(claim: ReportClaim) -> str:
    facts = claim.facts
    return f"{facts.tokens} tokens in {facts.compute_s:.2f} s, {facts.compute_dtype} on {facts.numerics_class}"


def _event(name: str, lease: Lease, now: datetime, *, reason: Reason | None = None, detail: str = "") -> Event:
    return Event(
        at=now,
        name=name,
        unit_id=lease.unit_id,
        lease_id=lease.lease_id,
        host_id=lease.host_id,
        reason=reason,
        detail=detail,
    )
