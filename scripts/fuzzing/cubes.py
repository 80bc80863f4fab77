"""Manifests of small cubes of both kinds, as assembling writes them."""

from __future__ import annotations

from typing import Any

from fuzzing import samples
from memgrid.cube.manifest import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    REPORT_FILE,
    ActivationManifest,
    Chunk,
    Cost,
    Layout,
    LayoutKind,
    Numerics,
    ParameterManifest,
    Parent,
    Quality,
    SourceText,
    Validation,
    Wrap,
    readme_descriptor,
)
from memgrid.cube.oci import ADAPTER_CONFIG_TYPE, ADAPTER_TYPE, REPORT_TYPE, Descriptor
from memgrid.digest import digest_of
from memgrid.units import ComputeDtype, StoreDtype, UnitKey

COMMON: dict[str, Any] = {
    "name": "tests/document",
    "version": "1.0.0",
    "title": "A test",
    "licence": "Apache-2.0",
    "base": samples.BASE,
    "numerics": Numerics(compute_dtype=ComputeDtype.AUTO, store_dtype=StoreDtype.BFLOAT16),
    "token_count": 64,
    "sources": (SourceText(uri="a.md", digest=digest_of(b"text"), licence="CC-BY-4.0", size_bytes=4),),
    "lineage": (Parent(cube=digest_of(b"cube"), operation="distractor"),),
    "cost": Cost(flops=2**60, units=3),
    "validation": Validation(policy="replicas", min_replicas=2, limits={"k": 0.5}),
}
QUALITY = Quality(
    items=100,
    tokens=4000,
    nll_none=2.0,
    nll_cube=0.7,
    nll_text=0.5,
    kl_none=1.5,
    kl_cube=0.2,
    correct_none=0.4,
    correct_cube=0.9,
    exact_none=0.0,
    exact_cube=0.5,
)


def manifests() -> list[bytes]:
    chunks = [_chunk(number, 32 * number) for number in range(2)]
    activation = ActivationManifest(
        **COMMON,
        layout=Layout(kind=LayoutKind.CHAINED, wrap=Wrap.CHAT, chunk_tokens=32, sink_tokens=0),
        tokens=digest_of(b"tokens"),
        chunks=tuple(chunks),
        files=(readme_descriptor(b"readme"),),
    )
    adapter = Descriptor.of(b"weights", ADAPTER_TYPE, ADAPTER_FILE)
    config = Descriptor.of(b"{}", ADAPTER_CONFIG_TYPE, ADAPTER_CONFIG_FILE)
    report = Descriptor.of(b"{}", REPORT_TYPE, REPORT_FILE)
    parameter = ParameterManifest(
        **COMMON,
        adapter=samples.PREFIX,
        quality=QUALITY,
        terms=("valve", "bar"),
        files=(adapter, config, report, readme_descriptor(b"readme")),
    )
    return [activation.to_bytes(), parameter.to_bytes()]


def _chunk(number: int, start: int) -> Chunk:
    return Chunk(
        path=f"kv/{number:05d}.safetensors",
        digest=digest_of(b"kv%d" % number),
        size_bytes=2,
        unit=UnitKey("a" * 64),
        start=start,
        token_count=32,
        tokens=digest_of(b"tokens%d" % number),
    )
