"""A cube's label and price tag: what it is, what it weighs, what it saves, and when pulling it pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from memgrid.cube.manifest import ActivationManifest, CubeManifest, ParameterManifest
from memgrid.digest import Digest
from memgrid.kinds.prefill import flops
from memgrid.specs import AdapterKind, AdapterSpec


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

    `produced_flops` is the payload computed once, `spent_flops` with its replicas, and `saved_flops` reading the
    text, which each attach leaves out. `tokens` are those of the text.
    """

    name: str
    version: str
    digest: Digest
    kind: str
    title: str
    licence: str
    base: str
    base_weights: Digest
    layout: str | None
    """How chunks make one cache; only an activation cube has some."""
    wrap: str | None
    adapter: str | None
    """What was trained, in words; only a parameter cube has one."""
    quality: Mapping[str, Any] | None
    """Between both anchors, with `gap_closed`; only a parameter cube has it."""
    compression: float | None
    """How many times smaller than the KV cache of the text."""
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
            **_of_its_kind(manifest),
            store_dtype=manifest.numerics.store_dtype.value,
            tokens=manifest.token_count,
            files=len(manifest.payload()),
            bytes=manifest.payload_bytes,
            produced_flops=manifest.cost.flops,
            # At least: disagreements cost more, and what was really spent stands in the provenance.
            spent_flops=manifest.cost.flops * manifest.validation.min_replicas,
            saved_flops=flops(manifest.base.geometry, manifest.token_count, 0),
            min_replicas=manifest.validation.min_replicas,
            sources=tuple(source.uri for source in manifest.sources),
        )

    def break_even(self, *, line_bytes_per_s: float, compute_flops_per_s: float) -> BreakEven:
        """How pulling compares with computing here, for a line and a machine of these rates.

        Left out on both sides: loading the model, and reading the cube from disk (a small part of either).
        """
        compute_s = self.produced_flops / compute_flops_per_s
        return BreakEven(
            line_bytes_per_s=line_bytes_per_s,
            compute_flops_per_s=compute_flops_per_s,
            pull_s=self.bytes / line_bytes_per_s,
            compute_s=compute_s,
            line_needed_bytes_per_s=self.bytes / compute_s,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _of_its_kind(manifest: CubeManifest) -> dict[str, Any]:
    if isinstance(manifest, ActivationManifest):
        layout, wrap = manifest.layout.kind.value, manifest.layout.wrap.value
        return {"layout": layout, "wrap": wrap, "adapter": None, "quality": None, "compression": None}
    assert isinstance(manifest, ParameterManifest)
    return {
        "layout": None,
        "wrap": None,
        "adapter": adapter_text(manifest.adapter),
        "quality": manifest.quality.to_json(),
        "compression": round(manifest.compression, 2),
    }


def adapter_text(adapter: AdapterSpec) -> str:
    """An adapter in words.

    >>> adapter_text(AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=64, frozen_tokens=1))
    'a trained prefix of 64 virtual tokens'
    """
    if adapter.kind is AdapterKind.PREFIX:
        return f"a trained prefix of {adapter.virtual_tokens} virtual tokens"
    frozen = "" if adapter.frozen_a_seed is None else f", A frozen from seed {adapter.frozen_a_seed}"
    return f"LoRA of rank {adapter.rank} on {', '.join(adapter.targets)}{frozen}"
