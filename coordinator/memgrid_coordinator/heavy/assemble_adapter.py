"""Make a parameter cube of a trained adapter: report, plots, card, manifest, signed provenance. Copies no payload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    Cost,
    CubeManifest,
    Numerics,
    ParameterManifest,
    Parent,
    Quality,
    SourceText,
    Validation,
    readme_descriptor,
)
from memgrid.cube.oci import (
    ADAPTER_CONFIG_TYPE,
    ADAPTER_TYPE,
    CUBE_ARTIFACT_TYPE,
    CUBE_CONFIG_TYPE,
    PLOT_TYPE,
    REPORT_TYPE,
    Descriptor,
    OciManifest,
)
from memgrid.cube.provenance import DISTILL_BUILD_TYPE, sign_cube, slsa_predicate
from memgrid.cube.readme import render_readme
from memgrid.cube.readme_parameter import LOSS_PLOT_FILE, QUALITY_PLOT_FILE
from memgrid.digest import Digest, canonical_json
from memgrid.signing import SigningKey
from memgrid.specs import AdapterSpec
from memgrid_coordinator.heavy.assemble import AssembledCube, Making
from memgrid_coordinator.heavy.plots import LossPoint, loss_plot, quality_plot

REPORT_FORMAT = "memgrid.report.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOrder:
    """Everything a parameter cube is made of.

    `config` is the content of adapter_config.json and `tensors` the digest of adapter_model.safetensors, both as
    `memgrid.cube.peft.adapter_files` made them; the latter is in the blob folder already, since it was evaluated.
    `recipe` is what the campaign asked, as JSON: study, training, seeds. `lineage` names the cubes that were attached
    as distractors.
    """

    name: str
    version: str
    title: str
    licence: str
    base: ModelIdentity
    adapter: AdapterSpec
    numerics: Numerics
    token_count: int
    terms: tuple[str, ...]
    config: bytes
    tensors: Digest
    tensors_bytes: int
    sources: tuple[SourceText, ...]
    lineage: tuple[Parent, ...]
    quality: Quality
    trace: tuple[LossPoint, ...]
    cost: Cost
    validation: Validation
    recipe: Mapping[str, Any]
    making: Making


def assemble_adapter(order: AdapterOrder, key: SigningKey) -> AssembledCube:
    """The cube of a trained document; equal orders but for `making` give the same memcube.json, bit for bit.

    A second of work, for the plots. Raises InvalidError when the parts do not make a cube.
    """
    contents = {
        ADAPTER_CONFIG_FILE: (order.config, ADAPTER_CONFIG_TYPE),
        REPORT_FILE: (_report(order), REPORT_TYPE),
        LOSS_PLOT_FILE: (loss_plot(order.trace), PLOT_TYPE),
        QUALITY_PLOT_FILE: (quality_plot(order.quality), PLOT_TYPE),
    }
    small = tuple(Descriptor.of(content, kind, title) for title, (content, kind) in contents.items())
    tensors = Descriptor(
        media_type=ADAPTER_TYPE, digest=order.tensors, size_bytes=order.tensors_bytes, title=ADAPTER_FILE
    )
    draft = _manifest(order, (*small, tensors))
    readme = render_readme(draft)
    manifest = replace(draft, files=(readme_descriptor(readme), *draft.files))
    content = manifest.to_bytes()
    # What consumers will refuse must not be published.
    CubeManifest.from_bytes(content)
    provenance = sign_cube(content, _predicate(order), key)
    oci = OciManifest(
        artifact_type=CUBE_ARTIFACT_TYPE,
        config=Descriptor.of(content, CUBE_CONFIG_TYPE, MANIFEST_FILE),
        layers=manifest.oci_layers(provenance),
        annotations={
            "org.opencontainers.image.title": manifest.title,
            "org.opencontainers.image.version": manifest.version,
            "org.opencontainers.image.licenses": manifest.licence,
        },
    )
    written = (readme, *(each for each, _ in contents.values()), content, provenance)
    return AssembledCube(manifest=manifest, blobs=written, oci=oci.to_bytes())


def _manifest(order: AdapterOrder, files: tuple[Descriptor, ...]) -> ParameterManifest:
    return ParameterManifest(
        name=order.name,
        version=order.version,
        title=order.title,
        licence=order.licence,
        base=order.base,
        numerics=order.numerics,
        token_count=order.token_count,
        files=files,
        sources=order.sources,
        lineage=order.lineage,
        cost=order.cost,
        validation=order.validation,
        adapter=order.adapter,
        quality=order.quality,
        terms=order.terms,
    )


def _report(order: AdapterOrder) -> bytes:
    """eval/report.json: every number behind the card and its plots, and what was asked."""
    return canonical_json({
        "format": REPORT_FORMAT,
        "adapter": asdict(order.adapter),
        "quality": order.quality.to_json(),
        "training": [[point.step, point.tokens, point.loss] for point in order.trace],
        "training_columns": ["step", "answer tokens so far", "loss, nats per answer token"],
        "recipe": dict(order.recipe),
    })  # fmt: skip


def _predicate(order: AdapterOrder) -> dict[str, Any]:
    making = order.making
    sources = [{"uri": source.uri, "digest": _hex(source.digest)} for source in order.sources]
    parents = [{"uri": f"memgrid:{parent.operation}", "digest": _hex(parent.cube)} for parent in order.lineage]
    return slsa_predicate(
        build_type=DISTILL_BUILD_TYPE,
        builder=making.builder,
        parameters={"recipe": "distill", "campaign": making.campaign, **order.recipe},
        dependencies=[{"uri": order.base.name, "digest": _hex(order.base.digest)}, *sources, *parents],
        started_at=making.started_at,
        finished_at=making.finished_at,
        facts=making.facts(),
    )


def _hex(digest: Digest) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
