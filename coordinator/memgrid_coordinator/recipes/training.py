"""What training asks next: the next stretch of a relay, or the next round; and where it ended.

States follow from one another by digest. In a relay each unit begins where the former ended. In rounds all members
begin with the same parameters, and the grid merges what they moved them by (DiLoCo, arXiv 2311.08105). The velocity
of its own steps stays with the grid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from memgrid.campaign_distill import Mode
from memgrid.digest import Digest
from memgrid.specs import AdapterSpec, TrainSpec
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.heavy import make_merge
from memgrid_coordinator.lifecycle import ENDED_UNITS, UnitState
from memgrid_coordinator.policy.kinds import spec_in
from memgrid_coordinator.recipes.steps import Failed, Seen, Wait, Work, why_unit_failed
from memgrid_coordinator.records import Made, Unit

_MERGE = "merge/"
_VELOCITY = "velocity/"
_ROUNDING = 0.05
"""A campaign that says 0.67 of 3 members means 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Units to ask hosts for."""

    specs: tuple[TrainSpec, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Training is over, or this far; `note` says why it ended early."""

    state: Digest
    steps: int
    note: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A train unit and its spec."""

    unit: Unit
    spec: TrainSpec

    @property
    def is_accepted(self) -> bool:
        return self.unit.state is UnitState.ACCEPTED

    @property
    def has_ended(self) -> bool:
        return self.unit.state in ENDED_UNITS

    @property
    def is_reported(self) -> bool:
        return self.unit.state is UnitState.CHECKING

    @property
    def output(self) -> Digest:
        assert self.unit.output_digest is not None, f"unit {self.unit.key} is not accepted"
        return self.unit.output_digest


def next_step(
    seen: Seen,
    *,
    frame: Digest,
    start: Digest,
    shards: tuple[Digest, ...],
    distractors: tuple[Digest, ...],
    adapter: AdapterSpec,
) -> Ask | Work | Wait | Failed | Trained:
    """What follows from the train units so far."""
    train = seen.campaign.distill.train
    total = train.total_steps
    template = TrainSpec(
        model=seen.base.digest,
        frame=frame,
        adapter=adapter,
        state=start,
        shards=shards,
        distractors=distractors,
        distractor_share=train.distractor_share if distractors else 0.0,
        first_step=0,
        stop_step=min(train.steps_per_unit, total),
        total_steps=total,
        segment_steps=train.segment_steps,
        batch_rows=train.batch_rows,
        row_tokens=train.row_tokens,
        learning_rate=seen.campaign.distill.learning_rate,
        warmup_steps=train.warmup_steps,
        schedule=train.schedule,
        seed=train.seed,
        round=0,
        stream=0,
        streams=1,
        compute_dtype=seen.campaign.distill.compute_dtype,
    )
    if train.mode is Mode.RELAY:
        return _next_of_relay(seen, template)
    return _next_of_rounds(seen, template)


def trained(seen: Seen, start: Digest) -> Trained:
    """The newest state that was accepted, or merged."""
    if seen.campaign.distill.train.mode is Mode.RELAY:
        done = [member for member in _members(seen.units) if member.is_accepted]
        last = max(done, key=lambda member: member.spec.stop_step, default=None)
        if last is None:
            return Trained(state=start, steps=0)
        return Trained(state=last.output, steps=last.spec.stop_step)
    merges = _merges(seen.made)
    return Trained(state=_base(seen.made, len(merges), start), steps=_first_step(seen, len(merges)))


def withdrawn(seen: Seen, *, is_over: bool) -> dict[int, Reason]:
    """Train units that are of no more use: of a round too long ago, or when training is over.

    What is reported and being checked is left alone: the work is done, and should be paid.
    """
    unfinished = [member for member in _members(seen.units) if not member.has_ended and not member.is_reported]
    if seen.spent is not None:
        return {member.unit.unit_id: seen.spent for member in unfinished}
    if is_over:
        text = "training has ended without it"
        return {member.unit.unit_id: Reason(code=ReasonCode.STALE_ROUND, text=text) for member in unfinished}
    number = len(_merges(seen.made)) + 1
    oldest = number - seen.campaign.distill.train.rounds.staleness
    text = f"round {number} has begun, and a delta counts for {seen.campaign.distill.train.rounds.staleness} rounds"
    return {
        member.unit.unit_id: Reason(code=ReasonCode.STALE_ROUND, text=text)
        for member in unfinished
        if member.spec.round < oldest
    }


def note_in(adapter: Made) -> Reason | None:
    """Why training ended early, as kept with the adapter."""
    note = json.loads(adapter.detail).get("note")
    return None if note is None else Reason(code=ReasonCode(note["code"]), text=note["text"])


def _next_of_relay(seen: Seen, template: TrainSpec) -> Ask | Wait | Failed | Trained:
    here = trained(seen, template.state)
    after = [member for member in _members(seen.units) if member.spec.first_step == here.steps]
    if here.steps >= template.total_steps:
        return here
    if any(not member.has_ended and (seen.spent is None or member.is_reported) for member in after):
        return Wait()
    if failed := [member.unit for member in after if member.unit.state is UnitState.FAILED]:
        return _ended_badly(here, failed)
    if seen.spent is not None:
        # What is still out is withdrawn; were it awaited, one idle host could spend more than the budget.
        return replace(here, note=seen.spent)
    stop = min(here.steps + seen.campaign.distill.train.steps_per_unit, template.total_steps)
    spec = replace(template, state=here.state, first_step=here.steps, stop_step=stop)
    return Ask(specs=(spec,), why=f"steps {here.steps} to {stop} of {template.total_steps}")


def _next_of_rounds(seen: Seen, template: TrainSpec) -> Ask | Work | Wait | Failed | Trained:
    rounds = seen.campaign.distill.train.rounds
    number = len(_merges(seen.made)) + 1
    here = trained(seen, template.state)
    if here.steps >= template.total_steps:
        return here
    members = [member for member in _members(seen.units) if member.spec.round == number]
    done = [member for member in members if member.is_accepted]
    if not members:
        return replace(here, note=seen.spent) if seen.spent is not None else _round(seen, template, number, here)
    have_ended = all(member.has_ended or (seen.spent is not None and not member.is_reported) for member in members)
    if not have_ended:
        enough = max(1.0, rounds.enough * rounds.members - _ROUNDING)
        if len(done) < enough or seen.spent is not None:
            return Wait()
        ends = sorted(member.unit.settled_at for member in done if member.unit.settled_at is not None)
        until = ends[min(len(ends), -int(-enough // 1)) - 1] + timedelta(seconds=rounds.wait_s)
        if seen.now < until:
            return Wait(until=until)
    if not done:
        if failed := [member.unit for member in members if member.unit.state is UnitState.FAILED]:
            return _nobody_answered(here, failed, number)
        # Withdrawn, all of them: only a budget does that to a round under way.
        return replace(here, note=seen.spent)
    return _merge(seen, here, done, number, template.adapter)


def _round(seen: Seen, template: TrainSpec, number: int, here: Trained) -> Ask:
    rounds = seen.campaign.distill.train.rounds
    stop = min(here.steps + rounds.local_steps, template.total_steps)
    common = replace(
        template, state=here.state, first_step=here.steps, stop_step=stop, round=number, streams=rounds.members
    )
    return Ask(
        specs=tuple(replace(common, stream=stream) for stream in range(rounds.members)),
        why=f"round {number}: {rounds.members} members take steps {here.steps} to {stop} of {template.total_steps}",
    )


def _merge(seen: Seen, here: Trained, done: Sequence[_Member], number: int, adapter: AdapterSpec) -> Work:
    """The members' deltas, and those of earlier rounds that came too late for theirs."""
    rounds = seen.campaign.distill.train.rounds
    used = {key for merge in _merges(seen.made) for key in json.loads(merge.detail)["used"]}
    late = [
        member
        for member in _members(seen.units)
        if member.is_accepted
        and number - rounds.staleness <= member.spec.round < number
        and member.unit.key not in used
    ]
    taken = [*done, *late]
    return Work(
        name=_name(_MERGE, number),
        function=make_merge.make_merge,
        files={
            "base": (here.state,),
            "states": tuple(member.output for member in taken),
            "bases": tuple(member.spec.state for member in taken),
            "velocity": (seen.made[_name(_VELOCITY, number - 1)].digest,) if number > 1 else (),
        },
        options={
            "name": _name(_MERGE, number),
            "velocity_name": _name(_VELOCITY, number),
            "adapter": adapter,
            "rule": rounds,
            "keys": tuple(member.unit.key for member in taken),
        },
        why=f"round {number}: {len(done)} of {rounds.members} members" + (f", {len(late)} late" if late else ""),
    )


def _ended_badly(here: Trained, failed: Sequence[Unit]) -> Failed | Trained:
    """A run that diverges keeps its last good state; anything else is the end of the document."""
    reason = why_unit_failed(failed[0])
    if all(unit.reason is not None and unit.reason.code is ReasonCode.DIVERGED for unit in failed):
        return replace(here, note=reason)
    return Failed(reason=reason)


def _nobody_answered(here: Trained, failed: Sequence[Unit], number: int) -> Failed | Trained:
    ended = _ended_badly(here, failed)
    if isinstance(ended, Trained):
        return ended
    text = f"no member of round {number} came back; {ended.reason.text}"
    return Failed(reason=Reason(code=ReasonCode.ROUND_UNANSWERED, text=text))


def _members(units: Iterable[Unit]) -> list[_Member]:
    found = []
    for unit in units:
        if unit.kind == TrainSpec.kind:
            spec = spec_in(unit.spec)
            assert isinstance(spec, TrainSpec), f"unit {unit.key} is stored as another kind than its spec's"
            found.append(_Member(unit=unit, spec=spec))
    return found


def _merges(made: Mapping[str, Made]) -> list[Made]:
    """In order."""
    return [made[name] for name in sorted(made) if name.startswith(_MERGE)]


def _name(what: str, number: int) -> str:
    """Of what the grid makes at the end of a round."""
    return f"{what}{number:04d}"


def _base(made: Mapping[str, Made], number: int, start: Digest) -> Digest:
    """What was merged after so many rounds."""
    return made[_name(_MERGE, number)].digest if number else start


def _first_step(seen: Seen, number: int) -> int:
    train = seen.campaign.distill.train
    return min(number * train.rounds.local_steps, train.total_steps)
