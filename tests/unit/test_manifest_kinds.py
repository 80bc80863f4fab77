"""Manifests of both kinds: activation cubes keep the bytes they always had, parameter cubes say what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from memgrid.cube.identity import ModelIdentity
from memgrid.cube.manifest import (
    ActivationManifest,
    Chunk,
    Cost,
    CubeManifest,
    Layout,
    LayoutKind,
    Numerics,
    ParameterManifest,
    Quality,
    SourceText,
    Validation,
    Wrap,
)
from memgrid.cube.oci import ADAPTER_TYPE, Descriptor
from memgrid.digest import canonical_json, digest_of
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.specs import AdapterKind, AdapterSpec
from memgrid.units import ComputeDtype, StoreDtype, UnitKey

BASE = ModelIdentity(
    name="tiny",
    architecture="LlamaForCausalLM",
    weights=digest_of(b"weights"),
    tokenizer=digest_of(b"tokenizer"),
    chat_template=None,
    stored_dtype="BF16",
    dtype_exceptions={},
    geometry=ModelGeometry(
        layers=2, heads=4, kv_heads=2, head_dim=16, hidden=64, vocab=384, parameters=98_000, tied_embeddings=True
    ),
    rope={"all": {"type": "default", "theta": 10000.0, "rotary_dim": 16}},
    sliding_window=None,
    config={"model_type": "llama", "intermediate_size": 128},
)
COMMON: dict[str, Any] = {
    "name": "tests/document",
    "version": "1.0.0",
    "title": "A test",
    "licence": "Apache-2.0",
    "base": BASE,
    "numerics": Numerics(compute_dtype=ComputeDtype.AUTO, store_dtype=StoreDtype.BFLOAT16),
    "token_count": 64,
    "sources": (SourceText(uri="docs/test.md", digest=digest_of(b"text"), licence="CC-BY-4.0", size_bytes=4),),
    "lineage": (),
    "cost": Cost(flops=2**60, units=3),
    "validation": Validation(policy="replicas", min_replicas=2, limits={"k": 0.5}),
}
README = Descriptor(media_type="text/markdown", digest=digest_of(b"readme"), size_bytes=6, title="README.md")
ACTIVATION: dict[str, Any] = {
    **COMMON,
    "layout": Layout(kind=LayoutKind.CHAINED, wrap=Wrap.CHAT, chunk_tokens=64, sink_tokens=0),
    "tokens": digest_of(b"tokens"),
    "chunks": (
        Chunk(
            path="kv/00000.safetensors",
            digest=digest_of(b"kv"),
            size_bytes=2,
            unit=UnitKey("a" * 64),
            start=0,
            token_count=64,
            tokens=digest_of(b"tokens"),
        ),
    ),
    "files": (README,),
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
PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=8, frozen_tokens=1)
LORA = AdapterSpec(kind=AdapterKind.LORA, rank=4, alpha=8, targets=("q_proj",))
ADAPTER = Descriptor(
    media_type=ADAPTER_TYPE, digest=digest_of(b"a"), size_bytes=1024, title="adapter_model.safetensors"
)
PARAMETER: dict[str, Any] = {
    **COMMON,
    "adapter": PREFIX,
    "quality": QUALITY,
    "terms": ("valve", "bar"),
    "files": (
        README,
        Descriptor(media_type="application/json", digest=digest_of(b"c"), size_bytes=1, title="adapter_config.json"),
        Descriptor(media_type="application/json", digest=digest_of(b"r"), size_bytes=1, title="eval/report.json"),
        Descriptor(
            media_type=ADAPTER_TYPE, digest=digest_of(b"a"), size_bytes=1024, title="adapter_model.safetensors"
        ),
    ),
}


def test_activation_manifests_keep_the_bytes_they_always_had() -> None:
    """Their digests are names that people have; the digest below is what the first release made."""
    manifest = ActivationManifest(**ACTIVATION)
    assert manifest.digest == "sha256:fc5248f3983143f4a9d5c437274a18ded9689fed8597594863f28f2178c61bef"
    assert CubeManifest.from_bytes(manifest.to_bytes()) == manifest
    assert [layer.title for layer in manifest.oci_layers(b"signed")] == [
        "README.md",
        "memcube.intoto.jsonl",
        "kv/00000.safetensors",
    ]


@pytest.mark.parametrize("adapter", [PREFIX, LORA, replace(LORA, frozen_a_seed=3)])
def test_a_parameter_manifest_comes_back_as_it_was(adapter: AdapterSpec) -> None:
    manifest = ParameterManifest(**{**PARAMETER, "adapter": adapter})
    assert CubeManifest.from_bytes(manifest.to_bytes()) == manifest
    value = json.loads(manifest.to_bytes())
    assert value["kind"] == "parameter" and not {"layout", "tokens", "chunks"} & set(value)
    assert manifest.payload_bytes == 1024 and manifest.compression == 16
    assert manifest.quality.gap_closed == pytest.approx(1.3 / 1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": replace(PREFIX, frozen_tokens=8)}, "adapter: expected a prefix of some virtual tokens"),
        ({"adapter": replace(PREFIX, rank=4)}, "adapter: expected a prefix of some virtual tokens"),
        ({"adapter": replace(LORA, targets=())}, "adapter: expected LoRA with rank, alpha and targets"),
        ({"adapter": replace(LORA, virtual_tokens=2)}, "adapter: expected LoRA with rank, alpha and targets"),
        ({"quality": replace(QUALITY, items=0)}, "quality: expected items and tokens"),
        ({"terms": ("x" * 65,)}, "terms: expected at most 64 words"),
        ({"terms": ("x",) * 65}, "terms: expected at most 64 words"),
        ({"files": PARAMETER["files"][:-1]}, "files: a parameter cube needs adapter_model.safetensors"),
        ({"name": "nameless"}, "expected name namespace/name"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], message: str) -> None:
    content = ParameterManifest(**{**PARAMETER, **change}).to_bytes()
    with pytest.raises(InvalidError, match=f"memcube.json: {message}"):
        CubeManifest.from_bytes(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("quality", "nll_cube"), "0", "quality.nll_cube: expected a number"),
        (("quality", "items"), -1, "quality.items: expected a whole number"),
        (("adapter", "targets"), "q_proj", "adapterspec.targets: expected a list"),
        (("kind",), "plaintext", "cubes of kind plaintext are not known"),
        (("layout",), {}, "not in canonical form, or with fields"),
    ],
)
def test_fields_that_are_not_what_they_should_be_are_named(path: tuple[str, ...], value: Any, message: str) -> None:
    content = json.loads(ParameterManifest(**PARAMETER).to_bytes())
    *parents, last = path
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(InvalidError, match=message):
        CubeManifest.from_bytes(canonical_json(content))


def test_no_gap_means_that_none_was_closed() -> None:
    assert replace(QUALITY, nll_text=2.0).gap_closed == 0
