"""The life of a unit as one pure function: what is stored, what happened, and therefore what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from memgrid.digest import Digest, canonical_json, digest_of
from memgrid.kinds.kind import Difference
from memgrid.kinds.part import Part
from memgrid.units import LeaseId, Output, Reason, ReasonCode
from memgrid_coordinator.lifecycle import HAVE_RESULTS, UNIT_MOVES, LeaseState, UnitState
from memgrid_coordinator.policy import latecomers
from memgrid_coordinator.policy.quorum import Agreed, Hopeless, Pair, Pending, difference, settle
from memgrid_coordinator.records import Lease, ReplicaClaim, Unit

FAILURES_MAX = 12
"""Leases of one unit that may expire or fail before the unit is given up: then it is the unit.

What is rejected says nothing of the unit, and cheats could end any by it; each account can do that but once.
"""


NOT_WANTED = Reason(code=ReasonCode.CAMPAIGN_CANCELLED, text="no campaign wants this unit any more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A report came, or a lease ended: look at the unit again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadVerified:
    """The ordered output is here, and its bytes are what was reported.

    It is final when others agree or a part of it was replayed; else audits that are still to come decide.
    """

    lease_id: LeaseId
    is_final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFailed:
    """The ordered output did not come, or is not what was reported."""

    lease_id: LeaseId
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """Enough audits passed since: a provisional result stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """The result must not stand: it was found wrong, or its host was found to be at fault elsewhere."""

    reason: Reason
    is_wrong: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphaned:
    """What the unit continues was recalled: whatever was computed from it is worth nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """No campaign wants the unit any more."""

    reason: Reason = NOT_WANTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Impossible:
    """Nobody can compute the unit: something it needs is gone."""

    reason: Reason


UnitEvent = Changed | UploadVerified | UploadFailed | Confirmed | Recalled | Orphaned | Withdrawn | Impossible


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseMove:
    lease_id: LeaseId
    move: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What has to happen. Moves name rows of the tables in `lifecycle.py`."""

    unit_moves: tuple[str, ...] = ()
    reason: Reason | None = None
    lease_moves: tuple[LeaseMove, ...] = ()
    vacancies: int = 0
    """How many more hosts should hold the unit from now on."""
    order_from: LeaseId | None = None
    """Whose output to fetch."""
    disputed: Mapping[LeaseId, Part] = field(default_factory=dict)
    """Reports that differ, and the piece that is computed again of each."""
    result: LeaseId | None = None
    """Whose output is the unit's result from now on."""
    compare: tuple[Pair, ...] = ()
    """What has to be compared before this can be decided."""


ORPHANED = Reason(code=ReasonCode.PARENT_RECALLED, text="the chunk before it was recalled and is computed again")
SETTLED = Reason(code=ReasonCode.UNIT_SETTLED, text="the unit was settled without this lease")
VERDICTS_ON_THE_UNIT = frozenset({ReasonCode.DIVERGED, ReasonCode.VOCABULARY_MISMATCH, ReasonCode.HELD_OUT_LEAKED})
"""Why a host may say that nobody can do the unit, rather than that it can't."""
SAME_VERDICT_MAX = 3
"""So often one account may say it; it gets the unit again only when nobody else has taken it up for a while."""


def step(
    unit: Unit,
    leases: Sequence[Lease],
    event: UnitEvent,
    known: Mapping[Pair, Difference],
    *,
    tried: frozenset[LeaseId] = frozenset(),
    believed: frozenset[LeaseId] = frozenset(),
) -> Outcome:
    """Decide about one unit. `leases` are all it ever had, `tried` those whose upload was asked for in vain.

    `believed` are those whose hosts are taken at their word where nobody can confirm it any more.
    """
    if unit.state in _ENDED_IN_VAIN:
        return _judge_in_vain(unit, leases, known, believed)
    if isinstance(event, Withdrawn | Impossible) and unit.state not in HAVE_RESULTS:
        return _end(leases, "cancel" if isinstance(event, Withdrawn) else "fail", event.reason)
    if isinstance(event, Orphaned):
        return _close(unit, leases)
    if unit.state is UnitState.OPEN:
        return _collect(unit, leases, known)
    if unit.state is UnitState.CHECKING:
        if isinstance(event, UploadVerified):
            return _hear_the_other(leases, event.lease_id) or _take(leases, event.lease_id, is_final=event.is_final)
        if isinstance(event, UploadFailed):
            return _try_another(unit, leases, event, known, tried)
    if unit.state in HAVE_RESULTS:
        if isinstance(event, Recalled):
            return _recall(unit, leases, event)
        if isinstance(event, Confirmed) and unit.state is UnitState.PROVISIONAL:
            return Outcome(unit_moves=("accept",))
        return _judge_latecomers(unit, leases, known)
    return Outcome()


def claim_of(lease: Lease) -> ReplicaClaim:
    """What the quorum looks at in a report."""
    assert lease.facts is not None, f"lease {lease.lease_id} has not been reported"
    return ReplicaClaim(
        lease_id=lease.lease_id,
        account_id=lease.account_id,
        output_digest=result_digest(lease.outputs),
        sketch=lease.sketch,
        compute_dtype=lease.facts.compute_dtype,
        outputs=lease.outputs,
        numerics_class=lease.facts.numerics_class,
    )


def result_digest(outputs: Sequence[Output]) -> Digest:
    """What stands for all outputs of a report: equal only when every one of them is."""
    if len(outputs) == 1:
        return outputs[0].digest
    return digest_of(canonical_json([[output.name, output.digest] for output in outputs]))


def _in(leases: Sequence[Lease], *states: LeaseState) -> list[Lease]:
    return [lease for lease in leases if lease.state in states]


def _collect(unit: Unit, leases: Sequence[Lease], known: Mapping[Pair, Difference]) -> Outcome:
    claims = [claim_of(lease) for lease in _in(leases, LeaseState.REPORTED)]
    verdict = settle(claims, known, min_replicas=unit.min_replicas, max_replicas=unit.max_replicas)
    running = len(_in(leases, LeaseState.LEASED))
    if isinstance(verdict, Agreed):
        moves = [_agrees(lease_id) for lease_id in verdict.agreed]
        moves += [_disagrees(lease_id, exceeded) for lease_id, exceeded in verdict.rejected]
        return Outcome(unit_moves=("agree",), lease_moves=tuple(moves), order_from=verdict.medoid)
    if (disputed := _dispute(unit, leases, verdict, known)) is not None:
        return disputed
    if isinstance(verdict, Hopeless):
        text = f"{len(claims)} reports and no majority among them"
        return _end(leases, "fail", Reason(code=ReasonCode.NO_AGREEMENT, text=text))
    if (given_up := _given_up(leases)) is not None:
        return _end(leases, "fail", given_up)
    if unit.failures >= FAILURES_MAX:
        text = f"{unit.failures} leases expired or failed"
        return _end(leases, "fail", Reason(code=ReasonCode.TOO_MANY_FAILURES, text=text))
    if verdict.compare:
        return Outcome(compare=verdict.compare, vacancies=0)
    return Outcome(vacancies=max(0, verdict.reports_wanted - running))


def _given_up(leases: Sequence[Lease]) -> Reason | None:
    """What hosts say of the unit itself, once two accounts agree in it: one alone may be wrong, or lie."""
    said: dict[ReasonCode, list[Lease]] = {}
    for lease in _in(leases, LeaseState.RELEASED):
        if lease.reason is not None and lease.reason.code in VERDICTS_ON_THE_UNIT:
            said.setdefault(lease.reason.code, []).append(lease)
    for released in said.values():
        if len({lease.account_id for lease in released}) > 1 or len(released) >= SAME_VERDICT_MAX:
            return released[0].reason
    return None


def _dispute(
    unit: Unit, leases: Sequence[Lease], verdict: Pending | Agreed | Hopeless, known: Mapping[Pair, Difference]
) -> Outcome | None:
    """Two reports differ where two are wanted: no third host has to compute it all, the arbiter looks at the piece.

    None where the reports don't tell the piece, or it was looked at before.
    """
    reported = _in(leases, LeaseState.REPORTED)
    is_open = isinstance(verdict, Hopeless) or (isinstance(verdict, Pending) and not verdict.compare)
    if unit.min_replicas != 2 or len(reported) != 2 or not is_open:
        return None
    one, other = reported
    pair = frozenset((one.lease_id, other.lease_id))
    part = known[pair].part if pair in known else None
    if part is None or one.account_id == other.account_id or None not in (one.disputed, other.disputed):
        return None
    # By digest: whoever reports first must not decide which bytes a cube is made of.
    first = min(reported, key=lambda lease: result_digest(lease.outputs))
    return Outcome(
        unit_moves=("agree",),
        lease_moves=(_is_looked_at(first),),
        order_from=first.lease_id,
        disputed={lease.lease_id: part for lease in reported},
    )


def _hear_the_other(leases: Sequence[Lease], lease_id: LeaseId) -> Outcome | None:
    """Nobody is turned down for differing from a good answer, only for what the arbiter finds: so it hears both."""
    heard = next(lease for lease in leases if lease.lease_id == lease_id)
    waiting = [lease for lease in _in(leases, LeaseState.REPORTED) if lease.disputed is not None]
    if heard.disputed is None or not waiting:
        return None
    return Outcome(lease_moves=(_is_looked_at(waiting[0]),), order_from=waiting[0].lease_id)


def _take(leases: Sequence[Lease], lease_id: LeaseId, *, is_final: bool = True) -> Outcome:
    moves = [
        LeaseMove(lease_id=lease.lease_id, move="cancel", reason=SETTLED) for lease in _in(leases, LeaseState.LEASED)
    ]
    return Outcome(unit_moves=("accept" if is_final else "hold",), lease_moves=tuple(moves), result=lease_id)


def _recall(unit: Unit, leases: Sequence[Lease], event: Recalled) -> Outcome:
    """Take a result back.

    What is the same as a wrong one to the byte is as wrong. Other reports count again, unless they were paid: then
    they have had their say.
    """
    result = next(lease for lease in leases if lease.lease_id == unit.accepted_lease_id)
    same = result_digest(result.outputs)
    moves = []
    for lease in _in(leases, LeaseState.AGREED):
        if event.is_wrong and result_digest(lease.outputs) == same:
            move = "reject"
        else:
            move = "cancel" if lease is result or unit.state is UnitState.ACCEPTED else "unagree"
        moves.append(LeaseMove(lease_id=lease.lease_id, move=move, reason=event.reason))
    return Outcome(unit_moves=("recall",), reason=event.reason, lease_moves=tuple(moves))


def _close(unit: Unit, leases: Sequence[Lease]) -> Outcome:
    """Wait for the parent again; nobody is to blame."""
    if unit.state not in UNIT_MOVES["close"][0]:
        return Outcome()
    moves = [
        LeaseMove(lease_id=lease.lease_id, move="cancel", reason=ORPHANED)
        for lease in _in(leases, LeaseState.LEASED, LeaseState.REPORTED, LeaseState.AGREED)
    ]
    return Outcome(unit_moves=("close",), reason=ORPHANED, lease_moves=tuple(moves))


def _try_another(
    unit: Unit,
    leases: Sequence[Lease],
    event: UploadFailed,
    known: Mapping[Pair, Difference],
    tried: frozenset[LeaseId],
) -> Outcome:
    """Ask the next agreeing host; when none is left, go back to collecting reports."""
    lied = event.reason.code is not ReasonCode.UPLOAD_MISSING
    out = {event.lease_id} if lied else set()
    agreed = [lease for lease in _in(leases, LeaseState.AGREED) if lease.lease_id not in out]
    dropped = [LeaseMove(lease_id=lease_id, move="reject", reason=event.reason) for lease_id in sorted(out)]
    if next(lease for lease in leases if lease.lease_id == event.lease_id).disputed is not None:
        return _decide(unit, leases, event)
    accounts = {lease.account_id for lease in agreed}
    untried = [lease for lease in agreed if lease.lease_id not in tried and lease.lease_id != event.lease_id]
    if len(accounts) >= unit.min_replicas and untried:
        return Outcome(lease_moves=tuple(dropped), order_from=untried[0].lease_id)
    gone = [lease for lease in agreed if lease not in untried]
    dropped += [LeaseMove(lease_id=lease.lease_id, move="reject", reason=_MISSING) for lease in gone]
    kept = [LeaseMove(lease_id=lease.lease_id, move="unagree", reason=event.reason) for lease in untried]
    reported = len(untried) + len(_in(leases, LeaseState.REPORTED))
    running = len(_in(leases, LeaseState.LEASED))
    vacancies = max(0, unit.min_replicas - reported - running)
    return Outcome(unit_moves=("reopen",), reason=event.reason, lease_moves=(*dropped, *kept), vacancies=vacancies)


def _decide(unit: Unit, leases: Sequence[Lease], event: UploadFailed) -> Outcome:
    """One of two that differ is out; the other is heard, or was, and stands."""
    out = LeaseMove(lease_id=event.lease_id, move="reject", reason=event.reason)
    if passed := [lease for lease in _in(leases, LeaseState.AGREED) if lease.lease_id != event.lease_id]:
        taken = _take(leases, passed[0].lease_id)
        return replace(taken, lease_moves=(out, *taken.lease_moves))
    if (other := _hear_the_other(leases, event.lease_id)) is not None:
        return replace(other, lease_moves=(out, *other.lease_moves))
    there = len(_in(leases, LeaseState.REPORTED, LeaseState.LEASED))
    vacancies = max(0, unit.min_replicas - there)
    return Outcome(unit_moves=("reopen",), reason=event.reason, lease_moves=(out,), vacancies=vacancies)


def _judge_latecomers(unit: Unit, leases: Sequence[Lease], known: Mapping[Pair, Difference]) -> Outcome:
    """A report within its lease is judged, and paid, even when the unit has been settled meanwhile."""
    accepted = next(claim_of(lease) for lease in leases if lease.lease_id == unit.accepted_lease_id)
    late = [claim_of(lease) for lease in _in(leases, LeaseState.REPORTED)]
    unknown = tuple(
        pair
        for claim in late
        if claim.output_digest != accepted.output_digest
        and (pair := frozenset((claim.lease_id, accepted.lease_id))) not in known
    )
    if unknown:
        return Outcome(compare=unknown)
    moves = []
    for claim in late:
        exceeded = difference(claim, accepted, known).exceeded
        moves.append(_agrees(claim.lease_id) if exceeded is None else _disagrees(claim.lease_id, exceeded))
    return Outcome(lease_moves=tuple(moves))


def _end(leases: Sequence[Lease], move: str, reason: Reason) -> Outcome:
    """Nobody has to go on. What was reported is left for `_judge_in_vain`, which has to be asked next."""
    moves = [
        LeaseMove(lease_id=lease.lease_id, move=_AT_THE_END[lease.state], reason=reason)
        for lease in leases
        if lease.state in _AT_THE_END
    ]
    return Outcome(unit_moves=(move,), reason=reason, lease_moves=tuple(moves))


def _judge_in_vain(
    unit: Unit, leases: Sequence[Lease], known: Mapping[Pair, Difference], believed: frozenset[LeaseId]
) -> Outcome:
    """Reports on a unit that ended without a result: judged among themselves, for their hosts' credit."""
    if not _in(leases, LeaseState.REPORTED):
        return Outcome()
    hopeless = unit.reason is not None and unit.reason.code is ReasonCode.NO_AGREEMENT
    claims = [claim_of(lease) for lease in latecomers.standing(leases)]
    judged = latecomers.judge(claims, known, frozenset() if hopeless else believed)
    if judged.compare:
        return Outcome(compare=judged.compare)
    exceeded = dict(judged.rejected)
    told = unit.reason if hopeless and unit.reason is not None else _in_vain(unit, len(claims))
    moves = []
    for lease in leases:
        if lease.state is LeaseState.AGREED:
            continue  # credited before
        if lease.lease_id in judged.agreed:
            moves.append(_agrees(lease.lease_id))
        elif lease.lease_id in exceeded:
            moves.append(_disagrees(lease.lease_id, exceeded[lease.lease_id]))
        elif lease.state is LeaseState.REPORTED:
            moves.append(LeaseMove(lease_id=lease.lease_id, move="cancel", reason=told))
    return Outcome(lease_moves=tuple(moves))


def _in_vain(unit: Unit, reports: int) -> Reason:
    ended = f"its unit {'was cancelled' if unit.state is UnitState.CANCELLED else 'failed'}"
    if reports > 1:
        text = f"{ended} while reports on it differed, and no majority can be found"
    else:
        text = f"{ended} before another report confirmed this one, and its host is too new to be believed alone"
    return Reason(code=ReasonCode.UNIT_SETTLED, text=text)


_ENDED_IN_VAIN = frozenset({UnitState.FAILED, UnitState.CANCELLED})
_AT_THE_END = {LeaseState.LEASED: "cancel", LeaseState.AGREED: "unagree"}


_MISSING = Reason(code=ReasonCode.UPLOAD_MISSING, text="the ordered output was not uploaded in time")


def _is_looked_at(lease: Lease) -> LeaseMove:
    reason = Reason(code=ReasonCode.DISPUTED, text="another report differs: a piece of both is computed again")
    return LeaseMove(lease_id=lease.lease_id, move="agree", reason=reason)


def _agrees(lease_id: LeaseId) -> LeaseMove:
    return LeaseMove(lease_id=lease_id, move="agree", reason=Reason(code=ReasonCode.AGREES))


def _disagrees(lease_id: LeaseId, exceeded: str) -> LeaseMove:
    return LeaseMove(lease_id=lease_id, move="reject", reason=Reason(code=ReasonCode.DISAGREES, text=exceeded))
