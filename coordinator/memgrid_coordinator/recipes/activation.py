"""The activation recipe: what a campaign asks of the planner, which units follow, how they become a cube."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memgrid.campaign import CampaignFile
from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import Layout, LayoutKind, Numerics, SourceText, Wrap
from memgrid.digest import Digest
from memgrid.kinds.tolerances import BUILT_IN, Tolerances
from memgrid.specs import PrefillSpec
from memgrid.units import Reason
from memgrid_coordinator.heavy.assemble import AssemblyOrder, Making, OrderedChunk
from memgrid_coordinator.heavy.chunks import PlannedChunk, PlanParameters, sink_tokens_of
from memgrid_coordinator.heavy.plan import ActivationPlan
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.progress import NO_PROGRESS, Progress
from memgrid_coordinator.recipes.steps import Failed, Publish, Seen, Step, Wait, why_unit_failed
from memgrid_coordinator.records import Document, NewDocument, NewUnit, Unit


def plan_parameters(campaign: CampaignFile, *, flops_per_s: float, document_tokens_max: int) -> PlanParameters:
    """What the planner needs to know of a campaign; `flops_per_s` is that of the devices units are sized for."""
    activation = campaign.activation
    return PlanParameters(
        layout=LayoutKind(activation.layout),
        wrap=Wrap(activation.wrap),
        chunk_tokens=activation.chunk_tokens,
        target_unit_s=activation.target_unit_s,
        flops_per_s=flops_per_s,
        compute_dtype=activation.compute_dtype,
        store_dtype=activation.store_dtype,
        sink_tokens=activation.sink_tokens,
        document_tokens_max=document_tokens_max,
    )


def new_documents(plan: ActivationPlan) -> tuple[NewDocument, ...]:
    """The documents to create, each with its units in order."""
    units = {chunk.key: _new_unit(chunk) for chunk in plan.chunks}
    return tuple(
        NewDocument(
            name=document.name,
            source_uri=document.uri,
            source_digest=document.source,
            licence=document.licence,
            tokens=document.token_count,
            units=tuple(units[chunk.key] for chunk in document.chunks),
        )
        for document in plan.documents
    )


def new_units(documents: Iterable[NewDocument]) -> tuple[NewUnit, ...]:
    """Every unit of some documents once, parents before their children."""
    return tuple({unit.key: unit for document in documents for unit in document.units}.values())


def assembly_order(
    *,
    campaign: CampaignFile,
    document: Document,
    units: Sequence[Unit],
    tokens: Sequence[bytes],
    base: ModelIdentity,
    source_bytes: int,
    tolerances: Tolerances,
    making: Making,
) -> AssemblyOrder:
    """What to assemble from a document whose units are all accepted.

    `units` come in the document's order, `tokens` holds the ids of each, `source_bytes` is the size of its source.
    """
    activation = campaign.activation
    kind = LayoutKind(activation.layout)
    chunks = tuple(_ordered(unit, ids) for unit, ids in zip(units, tokens, strict=True))
    layout = Layout(
        kind=kind,
        wrap=Wrap(activation.wrap),
        # The planner's choice, if the campaign made none: only the last chunk may be shorter.
        chunk_tokens=max(chunk.spec.token_count for chunk in chunks),
        sink_tokens=sink_tokens_of(kind, activation.sink_tokens, document.tokens),
    )
    return AssemblyOrder(
        name=f"{campaign.publish.namespace}/{document.name}",
        version=campaign.publish.version,
        title=f"{campaign.publish.title}: {document.name}" if campaign.publish.title else document.name,
        licence=campaign.publish.licence,
        base=base,
        layout=layout,
        numerics=Numerics(compute_dtype=activation.compute_dtype, store_dtype=activation.store_dtype),
        chunks=chunks,
        sources=(
            SourceText(
                uri=document.source_uri,
                digest=document.source_digest,
                licence=document.licence,
                size_bytes=source_bytes,
            ),
        ),
        min_replicas=campaign.trust.replicas(audited=tolerances is not BUILT_IN),
        tolerances=tolerances,
        making=making,
    )


def next_step(seen: Seen) -> Step:
    """A document whose caches are all there is done; one that lacks a cache for good can't be."""
    for unit in seen.units:
        if unit.state is UnitState.FAILED:
            return Failed(reason=why_unit_failed(unit))
    if any(unit.state is not UnitState.ACCEPTED for unit in seen.units):
        return Wait()
    return Publish()


def withdrawn(seen: Seen) -> dict[int, Reason]:
    """Nothing: whatever a document was cut into it needs."""
    return {}


def progress(seen: Seen, losses: Sequence[tuple[int, float]]) -> Progress:
    """Its units say everything."""
    return NO_PROGRESS


def _new_unit(chunk: PlannedChunk) -> NewUnit:
    return NewUnit(
        key=chunk.key,
        kind=PrefillSpec.kind,
        spec=chunk.spec_bytes,
        model=chunk.spec.model,
        token_count=chunk.spec.token_count,
        flops=chunk.flops,
        parent=chunk.spec.parent,
    )


def _ordered(unit: Unit, tokens: bytes) -> OrderedChunk:
    assert unit.output_digest is not None, f"unit {unit.key} is not accepted"
    return OrderedChunk(
        spec=PrefillSpec.from_bytes(unit.spec),
        tokens=tokens,
        flops=unit.flops,
        output=Digest(unit.output_digest),
        output_bytes=unit.output_bytes,
    )
