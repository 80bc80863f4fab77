"""Carry out what `policy.life` decides: many units in one step, the same moves in one statement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice

from sqlalchemy import Connection

from memgrid.kinds.kind import Difference
from memgrid.units import HostId, LeaseId, Output, Reason, ReasonCode
from memgrid_coordinator.lifecycle import ENDED_UNITS, LeaseState, UnitState
from memgrid_coordinator.policy import life
from memgrid_coordinator.policy.life import LeaseMove, Outcome, UnitEvent, UploadFailed
from memgrid_coordinator.policy.quorum import Pair
from memgrid_coordinator.records import Event, Lease, Unit
from memgrid_coordinator.services import trusting
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.retracting import retract
from memgrid_coordinator.store import audits, credits, events, hosts, leases, units, uploads

SETTLED_AT_ONCE = 1000
"""Units that one statement names: a campaign that is cancelled may withdraw a million."""


@dataclass(slots=True, kw_only=True)
class Settlement:
    """What a step did, for those who have to be told once it is on disk."""

    verdicts: list[LeaseMove] = field(default_factory=list)
    news_for: set[HostId] = field(default_factory=set)
    work_opened: bool = False
    compare: dict[int, tuple[Pair, ...]] = field(default_factory=dict)
    ordered: list[tuple[Lease, Sequence[Output]]] = field(default_factory=list)
    held: list[Unit] = field(default_factory=list)
    """Units whose result is provisional now."""
    accepted: list[Unit] = field(default_factory=list)
    ended: list[Unit] = field(default_factory=list)
    recalled: int = 0
    """Units whose result was taken back."""
    retracted: list[str] = field(default_factory=list)
    """Cubes that left the pool with such a result."""
    credited_flops: int = 0
    stages: list[tuple[str, timedelta]] = field(default_factory=list)
    """How long accepted units had been in each stage of their life."""

    def merge(self, other: Settlement) -> None:
        self.verdicts += other.verdicts
        self.news_for |= other.news_for
        self.work_opened |= other.work_opened
        self.compare |= other.compare
        self.ordered += other.ordered
        self.held += other.held
        self.accepted += other.accepted
        self.ended += other.ended
        self.recalled += other.recalled
        self.retracted += other.retracted
        self.credited_flops += other.credited_flops
        self.stages += other.stages


def settle(
    connection: Connection,
    happened: Mapping[int, UnitEvent],
    *,
    known: Mapping[Pair, Difference],
    rule: JudgingRule,
    now: datetime,
) -> Settlement:
    """Look at these units again, each for what happened to it, and do what follows."""
    done = Settlement()
    left = iter(happened.items())
    while some := dict(islice(left, SETTLED_AT_ONCE)):
        done.merge(_settle(connection, some, known=known, rule=rule, now=now))
    return done


def _settle(
    connection: Connection,
    happened: Mapping[int, UnitEvent],
    *,
    known: Mapping[Pair, Difference],
    rule: JudgingRule,
    now: datetime,
) -> Settlement:
    found = units.by_id(connection, happened)
    of_unit = leases.of_units(connection, happened)
    failed_uploads = [unit_id for unit_id, event in happened.items() if isinstance(event, UploadFailed)]
    tried = uploads.tried(connection, failed_uploads) if failed_uploads else frozenset()
    reports = [lease for unit_id in happened for lease in of_unit[unit_id] if lease.state is LeaseState.REPORTED]
    in_vain = [(lease, found[lease.unit_id].kind) for lease in reports if found[lease.unit_id].state in _IN_VAIN]
    believed = trusting.believed_alone(connection, in_vain, rule.trust)
    outcomes = {
        unit_id: life.step(found[unit_id], of_unit[unit_id], event, known, tried=tried, believed=believed)
        for unit_id, event in happened.items()
    }
    carrying = _Carrying(connection, found, of_unit, rule=rule, now=now)
    carrying.carry_out(happened, outcomes)
    # A unit that went back to collecting may have reports enough; reports beside a settled one are judged too.
    again = [
        unit_id
        for unit_id, one in outcomes.items()
        if {"reopen", "recall"} & set(one.unit_moves) or _leaves_reports(one, of_unit[unit_id])
    ]
    follows = dict.fromkeys(again, life.Changed()) | carrying.follows
    carrying.done.merge(settle(connection, follows, known=known, rule=rule, now=now))
    return carrying.done


def _leaves_reports(outcome: Outcome, of_unit: Sequence[Lease]) -> bool:
    """Whether a unit has its result, or ended without one, and somebody may have done honest work beside it."""
    moved = set(outcome.unit_moves)
    if moved & {"hold", "accept"}:
        return any(lease.state is LeaseState.REPORTED for lease in of_unit)
    return bool(moved & {"fail", "cancel"}) and any(
        lease.state in (LeaseState.REPORTED, LeaseState.AGREED) for lease in of_unit
    )


_IN_VAIN = (UnitState.FAILED, UnitState.CANCELLED)


class _Carrying:
    """One application of many outcomes."""

    def __init__(
        self,
        connection: Connection,
        found: Mapping[int, Unit],
        of_unit: Mapping[int, list[Lease]],
        *,
        rule: JudgingRule,
        now: datetime,
    ) -> None:
        self.connection = connection
        self.units = found
        self.leases = {lease.lease_id: lease for group in of_unit.values() for lease in group}
        self.of_unit = of_unit
        self.rule = rule
        self.now = now
        self.done = Settlement()
        self.earned: list[tuple[Lease, int]] = []
        self.log: list[Event] = []
        self.follows: dict[int, UnitEvent] = {}
        """What happens to other units because of this."""

    def carry_out(self, happened: Mapping[int, UnitEvent], outcomes: Mapping[int, Outcome]) -> None:
        self._move_leases(outcomes)
        self._move_units(outcomes)
        self._take({unit_id: one for unit_id, one in outcomes.items() if {"hold", "accept"} & set(one.unit_moves)})
        self._recall(outcomes)
        self._pay_latecomers(outcomes)
        credits.grant(self.connection, self.earned, self.now)
        self._order(outcomes)
        self._set_vacancies(outcomes)
        self.done.compare = {unit_id: one.compare for unit_id, one in outcomes.items() if one.compare}
        events.append(self.connection, self.log)

    def _move_leases(self, outcomes: Mapping[int, Outcome]) -> None:
        alike: dict[tuple[str, Reason], list[LeaseId]] = defaultdict(list)
        for outcome in outcomes.values():
            for move in outcome.lease_moves:
                alike[move.move, move.reason].append(move.lease_id)
                self._note_lease(move)
        for (verb, reason), lease_ids in alike.items():
            moved = leases.move(self.connection, lease_ids, verb, reason)
            assert moved == len(lease_ids), f"{verb} moved {moved} of {len(lease_ids)} leases that this step had read"
        rejected = [move for outcome in outcomes.values() for move in outcome.lease_moves if move.move == "reject"]
        charged = [(*self._with_kind(move.lease_id), move.reason.code) for move in rejected]
        self.follows |= trusting.charge(self.connection, charged, self.rule.trust, self.now)
        agreeing = [
            lease_id
            for (verb, reason), ids in alike.items()
            if verb == "agree" and reason.code is not ReasonCode.DISPUTED
            for lease_id in ids
        ]
        if agreeing:
            hosts.forgive(self.connection, sorted({self.leases[lease_id].host_id for lease_id in agreeing}))
            confirmed = [self._with_kind(lease_id) for lease_id in agreeing if self._has_company(lease_id, agreeing)]
            trusting.note_agreement(self.connection, confirmed, self.now)

    def _with_kind(self, lease_id: LeaseId) -> tuple[Lease, str]:
        lease = self.leases[lease_id]
        return lease, self.units[lease.unit_id].kind

    def _has_company(self, lease_id: LeaseId, agreeing: Sequence[LeaseId]) -> bool:
        """Whether another account says the same of its unit."""
        lease = self.leases[lease_id]
        return any(
            other.account_id != lease.account_id and (other.state is LeaseState.AGREED or other.lease_id in agreeing)
            for other in self.of_unit[lease.unit_id]
        )

    def _note_lease(self, move: LeaseMove) -> None:
        lease = self.leases[move.lease_id]
        if move.move != "unagree":
            self.done.verdicts.append(move)
            self.done.news_for.add(lease.host_id)
        self.log.append(
            Event(
                at=self.now,
                name="report_disputed" if _is_disputed(move) else _LEASE_EVENTS[move.move],
                unit_id=lease.unit_id,
                lease_id=lease.lease_id,
                host_id=lease.host_id,
                reason=move.reason,
            )
        )

    def _move_units(self, outcomes: Mapping[int, Outcome]) -> None:
        alike: dict[str, list[int]] = defaultdict(list)
        for unit_id, outcome in outcomes.items():
            for verb in outcome.unit_moves:
                alike[verb].append(unit_id)
                name = "unit_disputed" if outcome.disputed else _UNIT_EVENTS[verb]
                self.log.append(Event(at=self.now, name=name, unit_id=unit_id, reason=outcome.reason))
        for verb, unit_ids in alike.items():
            reasons = {unit_id: outcomes[unit_id].reason for unit_id in unit_ids if verb in ("fail", "cancel")}
            moved = units.move(self.connection, unit_ids, verb, self.now)
            units.give_reasons(self.connection, reasons)
            assert moved == len(unit_ids), f"{verb} moved {moved} of {len(unit_ids)} units that this step had read"
            if verb in ("fail", "cancel"):
                self.done.ended += [self.units[unit_id] for unit_id in unit_ids]

    def _take(self, outcomes: Mapping[int, Outcome]) -> None:
        """These units have their result, for good or until audits confirm it: their children begin."""
        arrived = [self.leases[one.result] for one in outcomes.values() if one.result is not None]
        if arrived:
            units.set_results(self.connection, arrived)
            self._open_children([lease.unit_id for lease in arrived])
        for unit_id, outcome in outcomes.items():
            unit = self.units[unit_id]
            out = {move.lease_id for move in outcome.lease_moves if move.move == "reject"}
            agreed = [
                lease
                for lease in self.of_unit[unit_id]
                if lease.state is LeaseState.AGREED and lease.lease_id not in out
            ]
            if outcome.result is not None:
                reported = max(lease.reported_at for lease in agreed if lease.reported_at is not None)
                self.done.stages.append(("checking", self.now - reported))
                if "hold" in outcome.unit_moves:
                    self.done.held.append(unit)
                    continue
            self._pay(unit, agreed)
            self.done.accepted.append(unit)
            if unit.opened_at is not None:
                self.done.stages.append(("open_to_accepted", self.now - unit.opened_at))

    def _open_children(self, unit_ids: list[int]) -> None:
        children = units.children(self.connection, unit_ids)
        if children and units.open_units(self.connection, units.openable(self.connection, children), self.now):
            self.done.work_opened = True
            self.log += [Event(at=self.now, name="unit_opened", unit_id=unit_id) for unit_id in children]

    def _recall(self, outcomes: Mapping[int, Outcome]) -> None:
        """These units lose their result: what was made of it goes too."""
        lost = [unit_id for unit_id, one in outcomes.items() if {"recall", "close"} & set(one.unit_moves)]
        if not lost:
            return
        units.forget_results(self.connection, lost)
        ended = [move.lease_id for unit_id in lost for move in outcomes[unit_id].lease_moves]
        audits.spare(self.connection, ended)
        uploads.end(self.connection, ended, "refuse")
        self.done.recalled += sum(1 for unit_id in lost if "recall" in outcomes[unit_id].unit_moves)
        for unit_id in lost:
            if self.units[unit_id].state is UnitState.PROVISIONAL and "close" in outcomes[unit_id].unit_moves:
                # What was right for what was given is paid, though it is worth nothing any more.
                agreed = [lease for lease in self.of_unit[unit_id] if lease.state is LeaseState.AGREED]
                self._pay(self.units[unit_id], agreed)
            if self.units[unit_id].state is UnitState.ACCEPTED:
                wrong = [move.lease_id for move in outcomes[unit_id].lease_moves if move.move == "reject"]
                credits.reverse(self.connection, wrong, self.now)
                why = outcomes[unit_id].reason
                told = f"unit {self.units[unit_id].key[:12]}: {why.text if why else ''}"
                self.done.retracted += retract(self.connection, [unit_id], told, self.now)
        self.follows |= dict.fromkeys(units.descendants(self.connection, lost), life.Orphaned())

    def _pay_latecomers(self, outcomes: Mapping[int, Outcome]) -> None:
        for unit_id, outcome in outcomes.items():
            unit = self.units[unit_id]
            if unit.state in ENDED_UNITS:
                self._pay(unit, [self.leases[move.lease_id] for move in outcome.lease_moves if move.move == "agree"])

    def _pay(self, unit: Unit, earned: list[Lease]) -> None:
        self.earned += [(lease, unit.flops) for lease in earned]
        self.done.credited_flops += unit.flops * len(earned)
        self.done.news_for |= {lease.host_id for lease in earned}

    def _order(self, outcomes: Mapping[int, Outcome]) -> None:
        chosen = [
            replace(lease, disputed=one.disputed.get(lease.lease_id, lease.disputed))
            for one in outcomes.values()
            if one.order_from is not None
            for lease in [self.leases[one.order_from]]
        ]
        orders = [
            (lease, wanted, self.rule.due_at(_size_of(wanted), self.now))
            for lease in chosen
            for wanted in [self.rule.wanted(self.units[lease.unit_id].spec, lease)]
        ]
        uploads.order(self.connection, orders)
        leases.dispute(
            self.connection, {lease: part for one in outcomes.values() for lease, part in one.disputed.items()}
        )
        for lease, wanted, _ in orders:
            self.done.ordered.append((lease, wanted))
            self.done.news_for.add(lease.host_id)
            self.log.append(
                Event(
                    at=self.now,
                    name="upload_ordered",
                    unit_id=lease.unit_id,
                    lease_id=lease.lease_id,
                    host_id=lease.host_id,
                    detail=_in_words(wanted),
                )
            )

    def _set_vacancies(self, outcomes: Mapping[int, Outcome]) -> None:
        vacancies = {
            unit_id: outcome.vacancies
            for unit_id, outcome in outcomes.items()
            if (self.units[unit_id].state is UnitState.OPEN and not outcome.unit_moves)
            or "reopen" in outcome.unit_moves
        }
        units.set_vacancies(self.connection, vacancies)
        self.done.work_opened |= any(vacancies.values())


def _is_disputed(move: LeaseMove) -> bool:
    """Whether it is fetched to be looked at, rather than because others agree with it."""
    return move.reason.code is ReasonCode.DISPUTED


def _size_of(outputs: Sequence[Output]) -> int:
    return sum(output.size_bytes for output in outputs)


def _in_words(outputs: Sequence[Output]) -> str:
    size_bytes = f"{_size_of(outputs)} bytes"
    return size_bytes if len(outputs) == 1 else f"{size_bytes}: {', '.join(output.name for output in outputs)}"


_LEASE_EVENTS = {
    "agree": "report_agreed",
    "reject": "report_rejected",
    "unagree": "report_undecided",
    "cancel": "lease_cancelled",
}
_UNIT_EVENTS = {
    "agree": "unit_agreed",
    "hold": "unit_held",
    "accept": "unit_accepted",
    "recall": "unit_recalled",
    "close": "unit_closed",
    "reopen": "unit_reopened",
    "fail": "unit_failed",
    "cancel": "unit_cancelled",
}
