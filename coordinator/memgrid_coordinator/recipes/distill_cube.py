"""The order for a parameter cube: everything that was stored about a distilled document."""

from __future__ import annotations

import json
from collections.abc import Sequence

from memgrid.cube.manifest import Cost, Numerics, Parent, SourceText, Validation
from memgrid.digest import Digest
from memgrid.kinds.trace import StepTrace
from memgrid.specs import TrainSpec
from memgrid_coordinator.heavy.assemble import Making
from memgrid_coordinator.heavy.assemble_adapter import AdapterOrder
from memgrid_coordinator.heavy.make_adapter import PUBLISHED_IN
from memgrid_coordinator.heavy.plots import LossPoint
from memgrid_coordinator.lifecycle import UnitState
from memgrid_coordinator.recipes import distill
from memgrid_coordinator.recipes.steps import Seen

_POLICY = "studies and training replayed in part by the grid, drawn after the report; scores agree between accounts"


def adapter_order(
    seen: Seen,
    *,
    config: bytes,
    tensors_bytes: int,
    traces: Sequence[tuple[TrainSpec, tuple[StepTrace, ...]]],
    source_bytes: int,
    making: Making,
) -> AdapterOrder:
    """What to assemble from a document that reached its quality bar.

    `config` is the content of adapter_config.json, `tensors_bytes` the size of the adapter, `traces` what accepted
    train units told of their steps.
    """
    campaign, document, publish = seen.campaign, seen.document, seen.campaign.publish
    quality = distill.quality_in(seen.made)
    assert quality is not None, f"document {document.name} has not been scored"
    accepted = [unit for unit in seen.units if unit.state is UnitState.ACCEPTED]
    return AdapterOrder(
        name=f"{publish.namespace}/{document.name}",
        version=publish.version,
        title=f"{publish.title}: {document.name}" if publish.title else document.name,
        licence=publish.licence,
        base=seen.base,
        adapter=distill.adapter_of(seen),
        numerics=Numerics(compute_dtype=campaign.distill.compute_dtype, store_dtype=PUBLISHED_IN),
        token_count=document.tokens,
        terms=tuple(json.loads(seen.made[distill.TEXT].detail)["terms"]),
        config=config,
        tensors=seen.made[distill.ADAPTER].digest,
        tensors_bytes=tensors_bytes,
        sources=(
            SourceText(
                uri=document.source_uri,
                digest=document.source_digest,
                licence=document.licence,
                size_bytes=source_bytes,
            ),
        ),
        lineage=_lineage(seen),
        quality=quality,
        trace=_points(traces),
        cost=Cost(flops=sum(unit.flops for unit in accepted), units=len(accepted)),
        validation=Validation(
            policy=_POLICY,
            min_replicas=campaign.trust.replicas(audited=True),
            limits={"min_gap_closed": campaign.distill.quality.min_gap_closed},
        ),
        recipe=campaign.distill.model_dump(mode="json"),
        making=making,
    )


def _lineage(seen: Seen) -> tuple[Parent, ...]:
    """The cubes it was trained beside."""
    named = [made for name, made in sorted(seen.made.items()) if name.startswith(distill.DISTRACTOR)]
    return tuple(Parent(cube=Digest(json.loads(made.detail)["cube"]), operation="distractor") for made in named)


def _points(traces: Sequence[tuple[TrainSpec, tuple[StepTrace, ...]]]) -> tuple[LossPoint, ...]:
    """Every step's loss, in order; where several members took the same step, a point for each."""
    entries = sorted(
        ((entry.step, spec.round, spec.stream, entry) for spec, trace in traces for entry in trace),
        key=lambda one: one[:3],
    )
    points, tokens = [], 0
    for step, _, _, entry in entries:
        tokens += entry.tokens
        points.append(LossPoint(step=step, tokens=tokens, loss=entry.loss))
    return tuple(points)
