"""Make a cube of accepted chunk files: its manifest, its card, its signed provenance. No payload is copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import (
    MANIFEST_FILE,
    ActivationManifest,
    Chunk,
    Cost,
    CubeManifest,
    Layout,
    LayoutKind,
    Numerics,
    SourceText,
    Validation,
    readme_descriptor,
)
from memgrid.cube.oci import CUBE_ARTIFACT_TYPE, CUBE_CONFIG_TYPE, Descriptor, OciManifest
from memgrid.cube.provenance import sign_cube, slsa_predicate
from memgrid.cube.readme import render_readme
from memgrid.digest import Digest, digest_of
from memgrid.kinds.prefill_limits import sketch_limits
from memgrid.kinds.sketch import sketch_form
from memgrid.kinds.tolerances import Tolerances
from memgrid.signing import SigningKey
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedChunk:
    """An accepted unit: its spec, its token ids (little-endian u32), its cost, and the file that holds its cache."""

    spec: PrefillSpec
    tokens: bytes
    flops: int
    output: Digest
    output_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What was seen while a cube was made. It differs from run to run, so it goes into the provenance only."""

    builder: str
    campaign: str
    started_at: datetime
    finished_at: datetime
    replicas: int
    """Reports that agreed, over all units."""
    reports_rejected: int
    spent_flops: int
    device_seconds: Mapping[str, float]
    """By device kind, as the hosts measured them."""
    hosts: tuple[str, ...]
    """Fingerprints of the keys of those whose reports agreed."""
    largest_distance: float
    """Between two agreeing reports, as a share of what is allowed."""

    def facts(self) -> dict[str, Any]:
        """As the provenance tells it."""
        return {
            "replicas": self.replicas,
            "reports_rejected": self.reports_rejected,
            # Canonical JSON has whole numbers up to 2**53 only; a large campaign costs more.
            "spent_flops": float(self.spent_flops),
            "device_seconds": {kind: round(seconds, 3) for kind, seconds in self.device_seconds.items()},
            "hosts": sorted(self.hosts),
            "largest_distance": self.largest_distance,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyOrder:
    """Everything a cube is made of. `sink_tokens` is what this document's chunks share (chained: 0)."""

    name: str
    version: str
    title: str
    licence: str
    base: ModelIdentity
    layout: Layout
    numerics: Numerics
    chunks: tuple[OrderedChunk, ...]
    sources: tuple[SourceText, ...]
    min_replicas: int
    tolerances: Tolerances
    making: Making


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledCube:
    """A cube ready to publish: `blobs` are the small files that are new, `oci` lists them and the chunk files."""

    manifest: CubeManifest
    blobs: tuple[bytes, ...]
    oci: bytes

    @property
    def digest(self) -> Digest:
        """The cube's identity."""
        return self.manifest.digest


def assemble_cube(order: AssemblyOrder, key: SigningKey) -> AssembledCube:
    """The cube of a document; equal orders but for `making` give the same memcube.json, bit for bit.

    Milliseconds of work, so the key need not leave the process that owns it. Raises InvalidError when the chunks
    do not make a cube.
    """
    draft = _manifest(order)
    readme = render_readme(draft)
    manifest = replace(draft, files=(readme_descriptor(readme),))
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
    return AssembledCube(manifest=manifest, blobs=(readme, content, provenance), oci=oci.to_bytes())


def _manifest(order: AssemblyOrder) -> ActivationManifest:
    tokens = _document_tokens(order)
    return ActivationManifest(
        name=order.name,
        version=order.version,
        title=order.title,
        licence=order.licence,
        base=order.base,
        layout=order.layout,
        numerics=order.numerics,
        token_count=len(tokens) // 4,
        tokens=digest_of(tokens),
        chunks=tuple(_chunks(order)),
        files=(),
        sources=order.sources,
        lineage=(),
        cost=Cost(flops=sum(chunk.flops for chunk in order.chunks), units=len(order.chunks)),
        validation=_validation(order),
    )


def _document_tokens(order: AssemblyOrder) -> bytes:
    """The ids of the whole document: the sink once, then what each chunk adds."""
    shared_bytes = 4 * order.layout.sink_tokens if order.layout.kind is LayoutKind.INDEPENDENT else 0
    first, *rest = order.chunks
    return b"".join([first.tokens, *(chunk.tokens[shared_bytes:] for chunk in rest)])


def _chunks(order: AssemblyOrder) -> Iterator[Chunk]:
    for number, chunk in enumerate(order.chunks):
        yield Chunk(
            path=f"kv/{number:05d}.safetensors",
            digest=chunk.output,
            size_bytes=chunk.output_bytes,
            unit=chunk.spec.key,
            start=chunk.spec.start,
            token_count=chunk.spec.token_count,
            tokens=chunk.spec.tokens,
        )


def _validation(order: AssemblyOrder) -> Validation:
    """What results were allowed to differ by; with dtype `auto`, by the coarsest that hosts may choose."""
    asked, store_dtype = order.numerics.compute_dtype, order.numerics.store_dtype
    dtype = ComputeDtype.BFLOAT16 if asked is ComputeDtype.AUTO else asked
    if order.min_replicas == 1:
        checks = ("prefill.layer0", "prefill.window")
        rows = [order.tolerances.row(check, dtype, ComputeDtype.FLOAT32, store_dtype) for check in checks]
        return Validation(
            policy="parts of results, drawn once they were reported, were computed again by the grid",
            min_replicas=1,
            limits={name: limit for row in rows for name, limit in row.items()},
        )
    blocks = sketch_form(order.base.geometry, store_dtype, order.layout.chunk_tokens).blocks
    allowed = sketch_limits(order.tolerances, dtype, dtype, store_dtype, blocks)
    return Validation(
        policy="replicas of different accounts agree by sketch",
        min_replicas=order.min_replicas,
        limits=allowed,
    )


def _predicate(order: AssemblyOrder) -> dict[str, Any]:
    making = order.making
    sources = [{"uri": source.uri, "digest": _hex(source.digest)} for source in order.sources]
    return slsa_predicate(
        builder=making.builder,
        parameters={
            "recipe": "activation",
            "campaign": making.campaign,
            "layout": order.layout.kind,
            "wrap": order.layout.wrap,
            "chunk_tokens": order.layout.chunk_tokens,
            "sink_tokens": order.layout.sink_tokens,
            "compute_dtype": order.numerics.compute_dtype,
            "store_dtype": order.numerics.store_dtype,
        },
        dependencies=[{"uri": order.base.name, "digest": _hex(order.base.digest)}, *sources],
        started_at=making.started_at,
        finished_at=making.finished_at,
        facts=making.facts(),
    )


def _hex(digest: Digest) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
