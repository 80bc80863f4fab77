"""What search is told of an assembled cube."""

from __future__ import annotations

from memgrid.cube.manifest import CubeManifest, ParameterManifest
from memgrid_coordinator.records import CubeFacts


def cube_facts(manifest: CubeManifest) -> CubeFacts:
    """Of a cube of whatever kind."""
    trained = manifest if isinstance(manifest, ParameterManifest) else None
    return CubeFacts(
        digest=manifest.digest,
        kind=manifest.kind,
        base=manifest.base.name,
        title=manifest.title,
        source_names=tuple(source.uri for source in manifest.sources),
        terms=trained.terms if trained else (),
        tokens=manifest.token_count,
        payload_bytes=manifest.payload_bytes,
        licence=manifest.licence,
        produced_flops=manifest.cost.flops,
        gap_closed=round(trained.quality.gap_closed, 6) if trained else None,
    )
