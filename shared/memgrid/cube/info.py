"""A cube's label and price tag: what it is, what it weighs, what it saves, and when pulling it pays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from memgrid.cube.manifest import CubeManifest
from memgrid.digest import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """Pulling against computing here; both figures are estimates from the two rates they were made with."""

    line_bytes_per_s: float
    compute_flops_per_s: float
    pull_s: float
    compute_s: float
    line_needed_bytes_per_s: float
    """The line from which pulling is faster than computing."""

    @property
    def is_worth_pulling(self) -> bool:
        return self.pull_s < self.compute_s


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeInfo:
    """What to know before a download.

    `produced_flops` is the payload computed once, `spent_flops` with its replicas, and `saved_flops` the prefill
    that each attach leaves out.
    """

    name: str
    version: str
    digest: Digest
    kind: str
    title: str
    licence: str
    base: str
    base_weights: Digest
    layout: str
    wrap: str
    store_dtype: str
    tokens: int
    files: int
    bytes: int
    produced_flops: int
    spent_flops: int
    saved_flops: int
    min_replicas: int
    sources: tuple[str, ...]

    @staticmethod
    def of(manifest: CubeManifest) -> CubeInfo:
        return CubeInfo(
            name=manifest.name,
            version=manifest.version,
            digest=manifest.digest,
            kind=manifest.kind.value,
            title=manifest.title,
            licence=manifest.licence,
            base=manifest.base.name,
            base_weights=manifest.base.weights,
            layout=manifest.layout.kind.value,
            wrap=manifest.layout.wrap.value,
            store_dtype=manifest.numerics.store_dtype.value,
            tokens=manifest.token_count,
            files=len(manifest.chunks),
            bytes=manifest.payload_bytes,
            produced_flops=manifest.cost.flops,
            # At least: disagreements cost more, and what was really spent stands in the provenance.
            spent_flops=manifest.cost.flops * manifest.validation.min_replicas,
            saved_flops=manifest.cost.flops,
            min_replicas=manifest.validation.min_replicas,
            sources=tuple(source.uri for source in manifest.sources),
        )

    def break_even(self, *, line_bytes_per_s: float, compute_flops_per_s: float) -> BreakEven:
        """How pulling compares with computing here, for a line and a machine of these rates.

        Left out on both sides: loading the model, and reading the cube from disk (a small part of either).
        """
        compute_s = self.saved_flops / compute_flops_per_s
        return BreakEven(
            line_bytes_per_s=line_bytes_per_s,
            compute_flops_per_s=compute_flops_per_s,
            pull_s=self.bytes / line_bytes_per_s,
            compute_s=compute_s,
            line_needed_bytes_per_s=self.bytes / compute_s,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
