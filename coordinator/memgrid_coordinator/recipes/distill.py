"""The distill recipe: study, train, evaluate, publish; each stage's units follow from the results of the former.

A pure function of what is stored, so that a crash anywhere repeats harmlessly. What training asks next is in
`recipes/training.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memgrid.campaign import CampaignFile
from memgrid.campaign_distill import DistillParameters, Mode
from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import Quality
from memgrid.digest import Digest, digest_of
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.registry import kind_of
from memgrid.specs import AdapterKind, AdapterSpec, EvaluateSpec, Purpose, Spec, StudySpec, TrainSpec
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.heavy import make_adapter, make_quality, make_start, sort_conversations
from memgrid_coordinator.heavy.plan_distill import DistillPlan, StudiedDocument, StudyParameters
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.policy.kinds import spec_in
from memgrid_coordinator.progress import Progress, Stage
from memgrid_coordinator.recipes import training
from memgrid_coordinator.recipes.estimates import ahead_flops
from memgrid_coordinator.recipes.steps import Failed, MoreUnits, Publish, Seen, Step, Wait, Work, why_unit_failed
from memgrid_coordinator.records import Made, NewDocument, NewUnit, Unit

FRAME, TEXT, CONVERSATIONS, START, ADAPTER, CONFIG, QUALITY = (
    "frame", "text", "conversations", "start", "adapter", "config", "quality",
)  # fmt: skip
DISTRACTOR = "distractor/"
SIBLINGS_MAX = 16
"""More would be fetched by every host and hardly ever be drawn."""
START_ADAPTER = "start-adapter"
"""The start as other documents' training attaches it."""


def study_parameters(campaign: CampaignFile, *, document_tokens_max: int) -> StudyParameters:
    """What the planner needs to know of a campaign."""
    study = campaign.distill.study
    return StudyParameters(
        chunk_tokens=study.chunk_tokens,
        answer_room=study.question_tokens + study.answer_tokens,
        document_tokens_max=document_tokens_max,
    )


def new_documents(
    plan: DistillPlan, campaign: CampaignFile, base: ModelIdentity, distractors: Sequence[Made] = ()
) -> tuple[NewDocument, ...]:
    """The documents to create, each with its study units and what its later stages will need."""
    for document in plan.documents:
        _check_size(document, campaign)
    frame = digest_of(plan.frame)
    total = campaign.distill.train.total_steps
    return tuple(
        NewDocument(
            name=document.name,
            source_uri=document.uri,
            source_digest=document.source,
            licence=document.licence,
            tokens=document.token_count,
            units=tuple(
                new_unit(spec, base, campaign.distill) for spec in _study_specs(document, campaign, base, frame)
            ),
            made=(
                Made(name=FRAME, digest=frame),
                Made(name=TEXT, digest=digest_of(document.text), detail=json.dumps({"terms": document.terms})),
                *distractors,
            ),
            progress=Progress(stage=Stage.STUDY, steps_total=total),
        )
        for document in plan.documents
    )


def blobs_of(plan: DistillPlan) -> Iterable[bytes]:
    """What hosts and the engine will read: to be kept before any unit can be leased."""
    yield plan.frame
    for document in plan.documents:
        yield document.text
        yield from document.chunks


def new_unit(spec: Spec, base: ModelIdentity, parameters: DistillParameters) -> NewUnit:
    """A unit to create; its cost follows from its spec alone."""
    geometry: ModelGeometry = base.geometry
    return NewUnit(
        key=spec.key,
        kind=spec.kind,
        spec=spec.to_bytes(),
        model=spec.model,
        token_count=_tokens_of(spec, parameters),
        flops=kind_of(spec).flops(spec, geometry),
    )


def next_step(seen: Seen) -> Step:
    """What follows for a document: the first thing that is missing."""
    studied = _of(seen, StudySpec)
    if any(unit.state in (UnitState.FAILED, UnitState.CANCELLED) for unit in studied):
        return Failed(reason=_why_failed(studied))
    if any(unit.state is not UnitState.ACCEPTED for unit in studied):
        return Failed(reason=seen.spent) if seen.spent is not None else Wait()
    if CONVERSATIONS not in seen.made:
        return _sort(studied)
    if START not in seen.made:
        return _start(seen)
    if ADAPTER not in seen.made:
        return _train(seen)
    return _evaluate(seen)


def withdrawn(seen: Seen) -> dict[int, Reason]:
    """Units that nobody need compute any more, and why."""
    return training.withdrawn(seen, is_over=ADAPTER in seen.made)


def progress(seen: Seen, losses: Sequence[tuple[int, float]]) -> Progress:
    """How far the document is, for people; `losses` are those of its training so far."""
    made = seen.made
    trained = training.trained(seen, start=made[START].digest) if START in made else None
    note = training.note_in(made[ADAPTER]) if ADAPTER in made else None
    return Progress(
        stage=_stage(seen),
        steps=0 if trained is None else trained.steps,
        steps_total=seen.campaign.distill.train.total_steps,
        losses=tuple(losses),
        quality=quality_in(made),
        note=note,
        ahead_flops=ahead_flops(seen, is_trained=ADAPTER in made),
    )


def quality_in(made: Mapping[str, Made]) -> Quality | None:
    """The scores, once all are in."""
    return Quality(**json.loads(made[QUALITY].detail)) if QUALITY in made else None


def adapter_of(seen: Seen) -> AdapterSpec:
    """The shape of the document's adapter."""
    return seen.campaign.distill.adapter.shape(seen.document.tokens)


def _check_size(document: StudiedDocument, campaign: CampaignFile) -> None:
    """Whether there is anything to make smaller; raises InvalidError."""
    virtual_tokens = campaign.distill.adapter.shape(document.token_count).virtual_tokens
    if virtual_tokens >= document.token_count:
        raise InvalidError(
            f"{document.uri}: document {document.name!r}: expected more than the {virtual_tokens} tokens of its "
            f"adapter, found {document.token_count}; set distill.adapter.virtual_tokens or compression"
        )


def _study_specs(
    document: StudiedDocument, campaign: CampaignFile, base: ModelIdentity, frame: Digest
) -> Iterable[StudySpec]:
    study, model = campaign.distill.study, base.digest
    for chunk in document.chunks:
        for purpose, conversations in ((Purpose.TRAIN, study.conversations), (Purpose.HELD_OUT, study.held_out)):
            for first in range(0, conversations, study.conversations_per_unit):
                yield StudySpec(
                    model=model,
                    frame=frame,
                    tokens=digest_of(chunk),
                    token_count=len(chunk) // 4,
                    purpose=purpose,
                    seed=study.seed,
                    first=first,
                    conversations=min(study.conversations_per_unit, conversations - first),
                    temperature=study.temperature,
                    question_tokens=study.question_tokens,
                    answer_tokens=study.answer_tokens,
                    top_k=study.top_k,
                    compute_dtype=campaign.distill.compute_dtype,
                )


def _sort(studied: Sequence[Unit]) -> Work:
    files: dict[Purpose, list[Digest]] = {purpose: [] for purpose in Purpose}
    for unit in studied:
        spec = spec_in(unit.spec)
        assert isinstance(spec, StudySpec) and unit.output_digest is not None, f"unit {unit.key} is not accepted"
        files[spec.purpose].append(unit.output_digest)
    return Work(
        name=CONVERSATIONS,
        function=sort_conversations.sort_conversations,
        files={purpose.value: tuple(digests) for purpose, digests in files.items()},
        options={},
        why="conversations that occur twice, or are held out, are left out of training",
    )


def _start(seen: Seen) -> Work:
    train = seen.campaign.distill.train
    return Work(
        name=START,
        function=make_start.make_start,
        files={
            "text": (seen.made[TEXT].digest,),
            "frame": (seen.made[FRAME].digest,),
            "shards": _shards(seen, "train"),
        },
        options={
            "adapter": adapter_of(seen),
            "start": train.start,
            "seed": train.seed,
            "base": seen.base,
            "moments": train.mode is Mode.RELAY,
        },
        needs_model=True,
        why=f"training starts from {train.start}",
    )


def _train(seen: Seen) -> Step:
    distractors = _distractors(seen)
    if distractors is None:
        return Wait()
    step = training.next_step(
        seen,
        frame=seen.made[FRAME].digest,
        start=seen.made[START].digest,
        shards=_shards(seen, "train"),
        distractors=distractors,
        adapter=adapter_of(seen),
    )
    if isinstance(step, training.Trained):
        note = None if step.note is None else {"code": step.note.code, "text": step.note.text}
        return Work(
            name=ADAPTER,
            function=make_adapter.make_adapter,
            files={"state": (step.state,)},
            options={
                "adapter": adapter_of(seen),
                "base": seen.base,
                "detail": {"steps": step.steps, "note": note, "state": step.state},
            },
            why=f"training ended after {step.steps} steps" + (f": {step.note.text}" if step.note else ""),
        )
    if isinstance(step, training.Ask):
        units = tuple(new_unit(spec, seen.base, seen.campaign.distill) for spec in step.specs)
        return MoreUnits(units=units, why=step.why)
    return step


def _shards(seen: Seen, side: str) -> tuple[Digest, ...]:
    """The conversations to train on, or to score with."""
    return tuple(Digest(digest) for digest in json.loads(seen.made[CONVERSATIONS].detail)[side])


def _distractors(seen: Seen) -> tuple[Digest, ...] | None:
    """Adapters of other texts to attach in training, in order; None while a sibling has not started."""
    named = [made.digest for name, made in sorted(seen.made.items()) if name.startswith(DISTRACTOR)]
    if not seen.campaign.distill.train.siblings or adapter_of(seen).kind is not AdapterKind.PREFIX:
        return tuple(named)
    starts = [seen.siblings[name] for name in _neighbours(seen.document.name, seen.siblings)]
    known = [start for start in starts if start is not None]
    return (*named, *known) if len(known) == len(starts) else None


def _neighbours(own: str, siblings: Iterable[str]) -> list[str]:
    """The siblings that come next by name, from the beginning again at the end: so each is beside as many.

    >>> _neighbours("b", ["a", "c", "d"])
    ['c', 'd', 'a']
    """
    names = sorted(siblings)
    after = [name for name in names if name > own]
    return [*after, *names[: len(names) - len(after)]][:SIBLINGS_MAX]


def _evaluate(seen: Seen) -> Step:
    asked = _of(seen, EvaluateSpec)
    if not asked:
        specs = tuple(_evaluate_specs(seen))
        units = tuple(new_unit(spec, seen.base, seen.campaign.distill) for spec in specs)
        return MoreUnits(units=units, why=f"{sum(spec.items for spec in specs)} held-out conversations to score")
    if any(unit.state in (UnitState.FAILED, UnitState.CANCELLED) for unit in asked):
        return Failed(reason=_why_failed(asked))
    if any(unit.state is not UnitState.ACCEPTED for unit in asked):
        return Wait()
    if (quality := quality_in(seen.made)) is None:
        return Work(
            name=QUALITY,
            function=make_quality.make_quality,
            files={"scores": tuple(unit.output_digest for unit in asked if unit.output_digest is not None)},
            options={"specs": tuple(unit.spec for unit in asked)},
            why="the scores of all held-out conversations are in",
        )
    wanted = seen.campaign.distill.quality.min_gap_closed
    if quality.gap_closed < wanted:
        return Failed(reason=_below(quality, wanted, training.note_in(seen.made[ADAPTER])))
    return Publish()


def _evaluate_specs(seen: Seen) -> Iterable[EvaluateSpec]:
    distill = seen.campaign.distill
    items = int(json.loads(seen.made[CONVERSATIONS].detail)["held_out_items"])
    for first in range(0, items, distill.items_per_evaluation):
        yield EvaluateSpec(
            model=seen.base.digest,
            frame=seen.made[FRAME].digest,
            adapter=adapter_of(seen),
            adapter_file=seen.made[ADAPTER].digest,
            shards=_shards(seen, "held_out"),
            first=first,
            items=min(distill.items_per_evaluation, items - first),
            compute_dtype=distill.compute_dtype,
        )


def _below(quality: Quality, wanted: float, note: Reason | None) -> Reason:
    text = (
        f"the cube closes {quality.gap_closed:.0%} of the gap, {wanted:.0%} were asked for: "
        f"NLL {quality.nll_none:.3f} without the text, {quality.nll_cube:.3f} with the cube, "
        f"{quality.nll_text:.3f} with the text, {quality.items} conversations"
    )
    return Reason(code=ReasonCode.BELOW_QUALITY, text=f"{text}; {note.text}" if note is not None else text)


def _stage(seen: Seen) -> Stage:
    if QUALITY in seen.made:
        return Stage.PUBLISH
    if ADAPTER in seen.made:
        return Stage.EVALUATE
    return Stage.TRAIN if CONVERSATIONS in seen.made else Stage.STUDY


def _of(seen: Seen, kind: type[Any]) -> list[Unit]:
    return [unit for unit in seen.units if unit.kind == kind.kind]


def _why_failed(found: Sequence[Unit]) -> Reason:
    """Of units that are not all to be had, why the first is not."""
    unit = next(one for one in found if one.state in (UnitState.FAILED, UnitState.CANCELLED))
    return why_unit_failed(unit)


def _tokens_of(spec: Spec, parameters: DistillParameters) -> int:
    """About how many tokens pass through the model: what progress is counted in."""
    talk = parameters.study.question_tokens + parameters.study.answer_tokens
    match spec:
        case StudySpec():
            return spec.conversations * talk
        case TrainSpec():
            return (spec.stop_step - spec.first_step) * spec.batch_rows * spec.row_tokens
        case EvaluateSpec():
            return spec.items * talk
    raise AssertionError(f"a distillation has no units of kind {spec.kind}")
