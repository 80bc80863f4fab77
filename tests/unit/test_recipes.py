"""The activation recipe: a campaign becomes a plan's parameters, a plan units, accepted units an order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from memgrid.campaign import CampaignFile
from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.digest import Digest, digest_of
from memgrid.kinds.prefill import ModelGeometry
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.signing import SigningKey
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_coordinator.heavy.assemble import Making, assemble_cube
from memgrid_coordinator.heavy.chunks import as_tokens, cut
from memgrid_coordinator.heavy.plan import ActivationPlan, PlannedDocument
from memgrid_coordinator.lifecycle import DocumentState, UnitState
from memgrid_coordinator.recipes import activation
from memgrid_coordinator.recipes.facts import cube_facts
from memgrid_coordinator.records import CampaignId, Document, NewUnit, Unit

GEOMETRY = ModelGeometry(
    layers=2, heads=4, kv_heads=2, head_dim=16, hidden=64, vocab=384, parameters=100_000, tied_embeddings=True
)
BASE = ModelIdentity(
    name="models/tiny",
    architecture="LlamaForCausalLM",
    weights=digest_of(b"weights"),
    tokenizer=digest_of(b"tokenizer"),
    chat_template=None,
    stored_dtype="F32",
    dtype_exceptions={},
    geometry=GEOMETRY,
    rope={},
    sliding_window=None,
    config={},
)
MAKING = Making(
    builder="memgrid:test",
    campaign="c1",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    finished_at=datetime(2026, 1, 2, tzinfo=UTC),
    replicas=2,
    reports_rejected=0,
    spent_flops=1,
    device_seconds={},
    hosts=(),
    largest_distance=0.0,
)


def campaign_of(**activation_parameters: Any) -> CampaignFile:
    value = {
        "name": "handbook",
        "model": "models/tiny",
        "recipe": "activation",
        "sources": [{"path": "*.md"}],
        "activation": activation_parameters,
        "publish": {"namespace": "books", "version": "1.2.3", "licence": "CC-BY-4.0", "title": "Handbook"},
        "trust": {"min_replicas": 3},
    }
    return CampaignFile.model_validate(value)


def plan_of(campaign: CampaignFile, *counts: int) -> ActivationPlan:
    """Documents with a common beginning, of these many tokens."""
    parameters = activation.plan_parameters(campaign, flops_per_s=1e9, document_tokens_max=1000)
    documents = []
    for number, count in enumerate(counts):
        tokens = as_tokens(np.arange(count))
        documents.append(
            PlannedDocument(
                name=f"d{number}",
                uri=f"d{number}.md",
                source=digest_of(b"source %d" % number),
                licence="MIT",
                tokens=digest_of(tokens.tobytes()),
                token_count=count,
                chunks=tuple(cut(tokens, 16, BASE.digest, GEOMETRY, parameters)),
            )
        )
    return ActivationPlan(chunk_tokens=16, documents=tuple(documents))


def accepted(unit: NewUnit, number: int) -> Unit:
    """The stored unit, once its output is in the content store."""
    return Unit(
        unit_id=number,
        key=unit.key,
        kind=unit.kind,
        state=UnitState.ACCEPTED,
        spec=unit.spec,
        model=unit.model,
        token_count=unit.token_count,
        flops=unit.flops,
        priority=0,
        min_replicas=3,
        max_replicas=5,
        parent_id=None,
        fence=3,
        failures=0,
        output_digest=digest_of(b"output %d" % number),
        output_bytes=1000 + number,
        accepted_lease_id=None,
        opened_at=None,
    )


def document_of(plan: ActivationPlan, number: int = 0) -> Document:
    planned = plan.documents[number]
    return Document(
        document_id=number,
        campaign_id=CampaignId("c1"),
        name=planned.name,
        state=DocumentState.RUNNING,
        source_uri=planned.uri,
        source_digest=planned.source,
        licence=planned.licence,
        tokens=planned.token_count,
        units=len(planned.chunks),
        units_accepted=len(planned.chunks),
        cube="",
        cube_digest=None,
        reason=None,
    )


def tokens_of(plan: ActivationPlan, number: int = 0) -> list[bytes]:
    return [chunk.tokens for chunk in plan.documents[number].chunks]


def test_a_campaign_file_decides_the_plan() -> None:
    campaign = campaign_of(
        layout="independent", wrap="plain", chunk_tokens=48, sink_tokens=4, compute_dtype="float32"
    )
    parameters = activation.plan_parameters(campaign, flops_per_s=2e12, document_tokens_max=77)
    assert (parameters.layout, parameters.wrap) == (LayoutKind.INDEPENDENT, Wrap.PLAIN)
    assert (parameters.chunk_tokens, parameters.sink_tokens) == (48, 4)
    assert (parameters.compute_dtype, parameters.store_dtype) == (ComputeDtype.FLOAT32, StoreDtype.BFLOAT16)
    assert (parameters.flops_per_s, parameters.document_tokens_max) == (2e12, 77)


def test_units_of_two_documents_with_one_beginning_are_asked_for_once() -> None:
    documents = activation.new_documents(plan_of(campaign_of(), 40, 56))
    units = activation.new_units(documents)
    assert [len(document.units) for document in documents] == [3, 4]
    assert documents[0].units[:2] == documents[1].units[:2]
    assert len(units) == 5
    seen = {None}
    for unit in units:
        assert unit.parent in seen
        seen.add(unit.key)
        spec = PrefillSpec.from_bytes(unit.spec)
        assert (spec.key, spec.parent, spec.token_count) == (unit.key, unit.parent, unit.token_count)
        assert (unit.kind, unit.model) == ("prefill", BASE.digest)


@pytest.mark.parametrize(("layout", "sink"), [("chained", 0), ("independent", 2)])
def test_an_accepted_document_becomes_an_order_with_everything_in_it(layout: str, sink: int) -> None:
    campaign = campaign_of(layout=layout, sink_tokens=2)
    plan = plan_of(campaign, 40)
    units = activation.new_documents(plan)[0].units
    order = activation.assembly_order(
        campaign=campaign,
        document=document_of(plan),
        units=[accepted(unit, number) for number, unit in enumerate(units)],
        tokens=tokens_of(plan),
        base=BASE,
        source_bytes=123,
        tolerances=BUILT_IN,
        making=MAKING,
    )
    assert (order.name, order.version, order.title) == ("books/d0", "1.2.3", "Handbook: d0")
    assert (order.layout.kind, order.layout.chunk_tokens, order.layout.sink_tokens) == (LayoutKind(layout), 16, sink)
    assert order.min_replicas == 3
    assert [chunk.output for chunk in order.chunks] == [digest_of(b"output %d" % n) for n in range(len(units))]
    assert [chunk.spec.key for chunk in order.chunks] == [unit.key for unit in units]
    (source,) = order.sources
    assert (source.uri, source.digest, source.size_bytes) == ("d0.md", digest_of(b"source 0"), 123)


def test_a_document_as_short_as_its_sink_keeps_a_token_of_its_own() -> None:
    campaign = campaign_of(layout="independent", sink_tokens=8)
    plan = plan_of(campaign, 5)
    (unit,) = activation.new_documents(plan)[0].units
    order = activation.assembly_order(
        campaign=campaign,
        document=document_of(plan),
        units=[accepted(unit, 0)],
        tokens=tokens_of(plan),
        base=BASE,
        source_bytes=1,
        tolerances=BUILT_IN,
        making=MAKING,
    )
    assert order.layout.sink_tokens == 4


def test_a_unit_without_an_output_is_no_part_of_a_cube() -> None:
    campaign = campaign_of()
    plan = plan_of(campaign, 10)
    (unit,) = activation.new_documents(plan)[0].units
    unfinished = replace(accepted(unit, 0), output_digest=None)
    with pytest.raises(AssertionError, match="is not accepted"):
        activation.assembly_order(
            campaign=campaign,
            document=document_of(plan),
            units=[unfinished],
            tokens=tokens_of(plan),
            base=BASE,
            source_bytes=1,
            tolerances=BUILT_IN,
            making=MAKING,
        )


def test_search_learns_what_the_manifest_says() -> None:
    campaign = campaign_of()
    plan = plan_of(campaign, 40)
    units = activation.new_documents(plan)[0].units
    order = activation.assembly_order(
        campaign=campaign,
        document=document_of(plan),
        units=[accepted(unit, number) for number, unit in enumerate(units)],
        tokens=tokens_of(plan),
        base=BASE,
        source_bytes=123,
        tolerances=BUILT_IN,
        making=MAKING,
    )
    cube = assemble_cube(order, SigningKey.generate())
    facts = cube_facts(cube.manifest)
    assert facts.digest == cube.digest == Digest(digest_of(cube.blobs[1]))
    assert (facts.kind, facts.base, facts.title) == ("activation", "models/tiny", "Handbook: d0")
    assert (facts.tokens, facts.payload_bytes, facts.licence) == (40, 3003, "CC-BY-4.0")
    assert facts.source_names == ("d0.md",)
    assert facts.produced_flops == sum(unit.flops for unit in units)
