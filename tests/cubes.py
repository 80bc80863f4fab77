"""Make real cubes of a real model in a folder, as the grid would, for tests of what comes after."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import DynamicCache

from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.manifest import (
    MANIFEST_FILE,
    PROVENANCE_FILE,
    README_FILE,
    ActivationManifest,
    Chunk,
    Cost,
    Layout,
    LayoutKind,
    Numerics,
    SourceText,
    Validation,
    Wrap,
    readme_descriptor,
)
from memgrid.cube.provenance import sign_cube
from memgrid.cube.readme import render_readme
from memgrid.cube.wrap import document_ids
from memgrid.digest import digest_of, digest_of_file, token_bytes
from memgrid.kinds.prefill import KV_FORMAT, flops
from memgrid.kinds.prefill_limits import sketch_limits
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.signing import SigningKey
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, StoreDtype, UnitKey

TORCH_DTYPE = {
    StoreDtype.FLOAT32: torch.float32,
    StoreDtype.FLOAT16: torch.float16,
    StoreDtype.BFLOAT16: torch.bfloat16,
}


def prefill(model: Any, ids: list[int], past: DynamicCache | None = None) -> DynamicCache:
    """The plain transformers way to a cache; `past` is continued."""
    cache = DynamicCache() if past is None else past
    with torch.inference_mode():
        model.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return cache


def write_kv(path: Path, cache: DynamicCache, ids: list[int], start: int, store_dtype: StoreDtype) -> None:
    """A kv.safetensors of the tokens from `start` on."""
    tensors = {"tokens": torch.tensor(ids, dtype=torch.int32)}
    for layer, (k, v, *_) in enumerate(cache):
        tensors[f"l{layer}.k"] = k[0, :, start:].to(TORCH_DTYPE[store_dtype]).contiguous()
        tensors[f"l{layer}.v"] = v[0, :, start:].to(TORCH_DTYPE[store_dtype]).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": KV_FORMAT})


def make_cube(
    folder: Path,
    *,
    model: Any,
    model_folder: Path,
    tokenizer: Any,
    text: str,
    key: SigningKey,
    layout: LayoutKind = LayoutKind.CHAINED,
    wrap: Wrap = Wrap.CHAT,
    store_dtype: StoreDtype = StoreDtype.FLOAT32,
    chunk_tokens: int = 32,
    sink_tokens: int = 1,
    name: str = "tests/document",
    version: str = "1.0.0",
) -> ActivationManifest:
    """Compute, write and sign a whole cube folder."""
    identity = _identity(model_folder)
    ids = document_ids(tokenizer, text, wrap)
    sink = sink_tokens if layout is LayoutKind.INDEPENDENT else 0
    chunks = tuple(_chunks(folder, model, identity, ids, layout, sink, chunk_tokens, store_dtype))
    geometry = identity.geometry
    manifest = ActivationManifest(
        name=name,
        version=version,
        title=f"A test of {layout.value}",
        licence="Apache-2.0",
        base=identity,
        layout=Layout(kind=layout, wrap=wrap, chunk_tokens=chunk_tokens, sink_tokens=sink),
        numerics=Numerics(compute_dtype=ComputeDtype.FLOAT32, store_dtype=store_dtype),
        token_count=len(ids),
        tokens=digest_of(token_bytes(ids)),
        chunks=chunks,
        files=(),
        sources=(
            SourceText(
                uri="docs/test.md",
                digest=digest_of(text.encode()),
                licence="CC-BY-4.0",
                size_bytes=len(text.encode()),
            ),
        ),
        lineage=(),
        cost=Cost(flops=sum(flops(geometry, chunk.token_count, chunk.start) for chunk in chunks), units=len(chunks)),
        validation=Validation(
            policy="replicas",
            min_replicas=2,
            limits=sketch_limits(BUILT_IN, ComputeDtype.FLOAT32, ComputeDtype.FLOAT32, store_dtype, blocks=4),
        ),
    )
    return write_cube(folder, manifest, key)


@cache
def _identity(model_folder: Path) -> ModelIdentity:
    """Hashed once a session: nobody writes to the models that tests share."""
    return identity_of_folder(model_folder, "tiny")


def write_cube(folder: Path, manifest: ActivationManifest, key: SigningKey) -> ActivationManifest:
    """README, manifest and signature for chunk files that are already there."""
    readme = render_readme(manifest)
    manifest = replace(manifest, files=(readme_descriptor(readme),))
    (folder / README_FILE).write_bytes(readme)
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    (folder / PROVENANCE_FILE).write_bytes(sign_cube(manifest.to_bytes(), {"builder": "tests"}, key))
    return manifest


def _chunks(
    folder: Path,
    model: Any,
    identity: ModelIdentity,
    ids: list[int],
    layout: LayoutKind,
    sink: int,
    chunk_tokens: int,
    store_dtype: StoreDtype,
) -> Any:
    parent: UnitKey | None = None
    past: DynamicCache | None = None
    step = chunk_tokens - sink
    for number, first in zip(count(), range(sink, len(ids), step), strict=False):
        own = ids[:sink] + ids[first : first + step]
        start = first if layout is LayoutKind.CHAINED else 0
        cache = prefill(model, own, past)
        path = folder / f"kv/{number:04d}.safetensors"
        write_kv(path, cache, own, start, store_dtype)
        spec = PrefillSpec(
            model=identity.digest,
            tokens=digest_of(token_bytes(own)),
            token_count=len(own),
            start=start,
            parent=parent,
            compute_dtype=ComputeDtype.FLOAT32,
            store_dtype=store_dtype,
        )
        if layout is LayoutKind.CHAINED:
            parent, past = spec.key, cache
        yield Chunk(
            path=path.relative_to(folder).as_posix(),
            digest=digest_of_file(path),
            size_bytes=path.stat().st_size,
            unit=spec.key,
            start=start,
            token_count=len(own),
            tokens=spec.tokens,
        )
