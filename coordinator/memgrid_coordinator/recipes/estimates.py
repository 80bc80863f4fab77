"""What a campaign will cost, before anything runs; later stages from the campaign's numbers alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from memgrid.campaign import CampaignFile
from memgrid.campaign_distill import Mode
from memgrid.cube.identity import ModelIdentity
from memgrid.digest import digest_of
from memgrid.kinds.registry import kind_of
from memgrid.kinds.state_file import state_bytes_max
from memgrid.kinds.study import shard_bytes
from memgrid.specs import EvaluateSpec, PrefillSpec, Purpose, Spec, StudySpec, TrainSpec
from memgrid.units import UnitKey
from memgrid_coordinator.policy.kinds import spec_in
from memgrid_coordinator.recipes.steps import Seen
from memgrid_coordinator.records import NewDocument, NewUnit, StageEstimate

_UNKNOWN = digest_of(b"not made yet")
_ENDS_FETCHED = 2
"""Of a train unit, beside its result: both ends of the segment that is replayed."""
_SCORE_BYTES = 256
"""Of one conversation, generously."""


def stages_of(
    campaign: CampaignFile,
    documents: Sequence[NewDocument],
    base: ModelIdentity,
    present: Collection[UnitKey],
    *,
    is_calibrated: bool = False,
) -> tuple[StageEstimate, ...]:
    """One entry for each kind of unit, in the order in which they come; `present` are those accepted before.

    Of a model that the grid was calibrated for, one host computes a unit, unless the campaign says otherwise.
    """
    units = {unit.key: unit for document in documents for unit in document.units}
    if campaign.recipe == "activation":
        replicas = campaign.trust.replicas(audited=is_calibrated)
        return (_planned(PrefillSpec.kind, list(units.values()), replicas, base, present),)
    study = _planned(StudySpec.kind, list(units.values()), campaign.trust.replicas(audited=True), base, present)
    scored = _evaluation(campaign, documents, base, replicas=campaign.trust.replicas(audited=is_calibrated))
    return (study, _training(campaign, documents, base), scored)


def ahead_flops(seen: Seen, *, is_trained: bool) -> int:
    """What a document will still ask hosts for, replicas included, beyond the units that exist already."""
    campaign, tokens, base = seen.campaign, seen.document.tokens, seen.base
    specs = [spec_in(unit.spec) for unit in seen.units]
    if any(isinstance(spec, EvaluateSpec) for spec in specs):
        return 0
    scored = _evaluate_spec(campaign, tokens, base, _held_out(specs))
    flops = campaign.trust.replicas(audited=False) * kind_of(scored).flops(scored, base.geometry)
    if is_trained:
        return flops
    train = campaign.distill.train
    members = train.rounds.members if train.mode is Mode.ROUNDS else 1
    asked = max((spec.stop_step for spec in specs if isinstance(spec, TrainSpec)), default=0)
    rest = replace(_train_spec(campaign, tokens, base, members), first_step=asked)
    return flops + campaign.trust.replicas(audited=True) * members * kind_of(rest).flops(rest, base.geometry)


def _planned(
    kind: str, units: Sequence[NewUnit], replicas: int, base: ModelIdentity, present: Collection[UnitKey]
) -> StageEstimate:
    """Of units that are known already."""
    left = [unit for unit in units if unit.key not in present]
    return StageEstimate(
        kind=kind,
        units=len(units),
        units_present=len(units) - len(left),
        flops=sum(unit.flops for unit in units),
        flops_left=replicas * sum(unit.flops for unit in left),
        serial_flops=max((unit.flops for unit in left), default=0),
        bytes=sum(_bytes(unit, base) for unit in left),
        replicas=replicas,
    )


def _bytes(unit: NewUnit, base: ModelIdentity) -> int:
    match spec_in(unit.spec):
        case PrefillSpec() as prefill:
            return base.geometry.kv_bytes(prefill.token_count, prefill.store_dtype)
        case StudySpec() as study:
            return shard_bytes(study, base.geometry.vocab)
    return 0


def _training(campaign: CampaignFile, documents: Sequence[NewDocument], base: ModelIdentity) -> StageEstimate:
    train = campaign.distill.train
    rounds = train.mode is Mode.ROUNDS
    stretch = train.rounds.local_steps if rounds else train.steps_per_unit
    members = train.rounds.members if rounds else 1
    flops = serial_flops = state_bytes = 0
    for document in documents:
        spec = _train_spec(campaign, document.tokens, base, members)
        own = kind_of(spec).flops(spec, base.geometry)
        flops += members * own
        serial_flops = max(serial_flops, own)
        result = state_bytes_max(spec.adapter, base.geometry, moments=not rounds)
        state_bytes += result + _ENDS_FETCHED * state_bytes_max(spec.adapter, base.geometry, moments=True)
    stretches = -(-train.total_steps // stretch)
    replicas = campaign.trust.replicas(audited=True)
    return StageEstimate(
        kind=TrainSpec.kind,
        units=stretches * members * len(documents),
        units_present=0,
        flops=flops,
        flops_left=replicas * flops,
        serial_flops=serial_flops,
        bytes=stretches * members * state_bytes,
        replicas=replicas,
    )


def _train_spec(campaign: CampaignFile, tokens: int, base: ModelIdentity, members: int) -> TrainSpec:
    """All steps of a document at once, as one host would take them."""
    train = campaign.distill.train
    return TrainSpec(
        model=base.digest,
        frame=_UNKNOWN,
        adapter=campaign.distill.adapter.shape(tokens),
        state=_UNKNOWN,
        shards=(),
        distractors=(),
        distractor_share=0.0,
        first_step=0,
        stop_step=train.total_steps,
        total_steps=train.total_steps,
        segment_steps=train.segment_steps,
        batch_rows=train.batch_rows,
        row_tokens=train.row_tokens,
        learning_rate=campaign.distill.learning_rate,
        warmup_steps=train.warmup_steps,
        schedule=train.schedule,
        seed=train.seed,
        round=0,
        stream=0,
        streams=members,
        compute_dtype=campaign.distill.compute_dtype,
    )


def _evaluation(
    campaign: CampaignFile, documents: Sequence[NewDocument], base: ModelIdentity, *, replicas: int
) -> StageEstimate:
    each = campaign.distill.items_per_evaluation
    units = items = flops = largest = 0
    for document in documents:
        held_out = _held_out([spec_in(unit.spec) for unit in document.units])
        spec = _evaluate_spec(campaign, document.tokens, base, held_out)
        one = replace(spec, items=min(each, held_out))
        units += -(-held_out // each)
        items += held_out
        flops += kind_of(spec).flops(spec, base.geometry)
        largest = max(largest, kind_of(one).flops(one, base.geometry))
    return StageEstimate(
        kind=EvaluateSpec.kind,
        units=units,
        units_present=0,
        flops=flops,
        flops_left=replicas * flops,
        serial_flops=largest,
        bytes=items * _SCORE_BYTES,
        replicas=replicas,
    )


def _evaluate_spec(campaign: CampaignFile, tokens: int, base: ModelIdentity, items: int) -> EvaluateSpec:
    """All held-out conversations of a document at once."""
    return EvaluateSpec(
        model=base.digest,
        frame=_UNKNOWN,
        adapter=campaign.distill.adapter.shape(tokens),
        adapter_file=_UNKNOWN,
        shards=(_UNKNOWN,),
        first=0,
        items=items,
        compute_dtype=campaign.distill.compute_dtype,
    )


def _held_out(specs: Iterable[Spec]) -> int:
    """Held-out conversations that were asked for."""
    studied = [spec for spec in specs if isinstance(spec, StudySpec)]
    return sum(spec.conversations for spec in studied if spec.purpose is Purpose.HELD_OUT)
