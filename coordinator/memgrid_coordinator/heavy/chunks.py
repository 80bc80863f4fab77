"""Cut a document's tokens into prefill units, chained or independent, of a size that fits a target runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from memgrid.cube.manifest import LayoutKind, Wrap
from memgrid.digest import Digest, digest_of
from memgrid.errors import InvalidError
from memgrid.kinds.prefill import ModelGeometry, flops
from memgrid.kinds.sketch import sketch_form
from memgrid.specs import PrefillSpec, unit_key_of
from memgrid.units import SKETCH_BYTES_MAX, ComputeDtype, StoreDtype, UnitKey

CHUNK_TOKENS_LEAST = 64
CHUNK_TOKENS_MOST = 2048
_SKETCH_HEADER_BYTES = 4096

Tokens = npt.NDArray[np.uint32]
"""Little-endian token ids, one dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanParameters:
    """What a campaign and the grid decide about a plan.

    `chunk_tokens` None lets `target_unit_s` on a device of `flops_per_s` decide.
    """

    layout: LayoutKind
    wrap: Wrap
    chunk_tokens: int | None
    target_unit_s: float
    flops_per_s: float
    compute_dtype: ComputeDtype
    store_dtype: StoreDtype
    sink_tokens: int
    document_tokens_max: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChunk:
    """One unit of a plan: its spec, its token ids (little-endian u32) and its cost."""

    spec: PrefillSpec
    spec_bytes: bytes
    key: UnitKey
    tokens: bytes
    flops: int


def choose_chunk_tokens(geometry: ModelGeometry, parameters: PlanParameters) -> int:
    """Tokens a unit: as given, else the largest power of two from 64 to 2048 that fits the target runtime.

    The estimate looks at the model alone and not at the documents, so that equal texts are cut alike in every
    campaign and equal units are computed once. Raises InvalidError when a given size can't work.

    >>> smol = ModelGeometry(layers=30, heads=9, kv_heads=3, head_dim=64, hidden=576, vocab=49152,
    ...     parameters=134515008, tied_embeddings=True)
    >>> parameters = PlanParameters(layout=LayoutKind.CHAINED, wrap=Wrap.PLAIN, chunk_tokens=None, target_unit_s=2,
    ...     flops_per_s=1e11, compute_dtype=ComputeDtype.AUTO, store_dtype=StoreDtype.BFLOAT16, sink_tokens=1)
    >>> choose_chunk_tokens(smol, parameters)
    512
    """
    size = parameters.chunk_tokens
    if size is None:
        size = CHUNK_TOKENS_MOST
        affordable_flops = parameters.target_unit_s * parameters.flops_per_s
        while size > CHUNK_TOKENS_LEAST and not (
            flops(geometry, size, 0) <= affordable_flops and _has_sketch(geometry, parameters.store_dtype, size)
        ):
            size //= 2
    if not _has_sketch(geometry, parameters.store_dtype, size):
        raise InvalidError(f"activation.chunk_tokens: expected fewer for a model of {geometry.layers} layers: {size}")
    if parameters.layout is LayoutKind.INDEPENDENT and parameters.sink_tokens >= size:
        raise InvalidError(f"activation.sink_tokens: expected fewer than the {size} tokens of a chunk")
    return size


def sink_tokens_of(layout: LayoutKind, sink_tokens: int, document_tokens: int) -> int:
    """The first tokens that every chunk of a document shares: none when chained, never the whole document."""
    return 0 if layout is LayoutKind.CHAINED else min(sink_tokens, document_tokens - 1)


def cut(
    tokens: Tokens, chunk_tokens: int, model: Digest, geometry: ModelGeometry, parameters: PlanParameters
) -> Iterator[PlannedChunk]:
    """The units of one document, in order.

    Chained, each continues its predecessor at the position where that one ended, so texts with a common beginning
    share the units of it. Independent, each starts at position 0 with the document's sink.
    """
    sink = sink_tokens_of(parameters.layout, parameters.sink_tokens, len(tokens))
    chained = parameters.layout is LayoutKind.CHAINED
    parent: UnitKey | None = None
    for start, end in pairwise([0, *range(chunk_tokens, len(tokens), chunk_tokens - sink), len(tokens)]):
        own = tokens[start:end]
        content = (np.concatenate([tokens[:sink], own]) if start else own).tobytes()
        spec = PrefillSpec(
            model=model,
            tokens=digest_of(content),
            token_count=len(content) // 4,
            start=start if chained else 0,
            parent=parent,
            compute_dtype=parameters.compute_dtype,
            store_dtype=parameters.store_dtype,
        )
        spec_bytes = spec.to_bytes()
        key = unit_key_of(spec_bytes)
        yield PlannedChunk(
            spec=spec,
            spec_bytes=spec_bytes,
            key=key,
            tokens=content,
            flops=flops(geometry, spec.token_count, spec.start),
        )
        parent = key if chained else None


def as_tokens(ids: Any) -> Tokens:
    """Token ids as they are stored."""
    return np.asarray(ids, dtype="<u4")


def _has_sketch(geometry: ModelGeometry, store_dtype: StoreDtype, token_count: int) -> bool:
    """Whether a report can bring the sketch of so many tokens."""
    form = sketch_form(geometry, store_dtype, token_count)
    return form.data_bytes + _SKETCH_HEADER_BYTES <= SKETCH_BYTES_MAX
