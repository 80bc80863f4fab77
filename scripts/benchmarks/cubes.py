"""Cubes to measure with: computed, assembled and signed by the real code, without a grid."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from memgrid.cube.cube import MemCube
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.manifest import (
    MANIFEST_FILE,
    PROVENANCE_FILE,
    README_FILE,
    Layout,
    LayoutKind,
    Numerics,
    SourceText,
    Wrap,
)
from memgrid.digest import digest_of, digest_of_file
from memgrid.distill.prefill import Pair, read_at_once
from memgrid.kinds.tolerances import BUILT_IN
from memgrid.signing import SigningKey
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_coordinator.heavy.assemble import AssemblyOrder, Making, OrderedChunk, assemble_cube
from memgrid_coordinator.heavy.chunks import PlannedChunk, PlanParameters, as_tokens, cut
from memgrid_volunteer.kinds.prefill import write_kv

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"
CHUNK_TOKENS = 512
PARAMETERS = PlanParameters(
    layout=LayoutKind.CHAINED,
    wrap=Wrap.CHAT,
    chunk_tokens=CHUNK_TOKENS,
    target_unit_s=20,
    flops_per_s=1e9,
    compute_dtype=ComputeDtype.FLOAT32,
    store_dtype=StoreDtype.BFLOAT16,
    sink_tokens=0,
)


def make_cube(folder: Path, model: Any, ids: list[int]) -> MemCube:
    """A signed and verified cube of these tokens, chained in chunks of 512."""
    identity = identity_of_folder(MODEL)
    (folder / "kv").mkdir()
    chunks: list[OrderedChunk] = []
    past: list[Pair] = []
    for planned in cut(as_tokens(ids), CHUNK_TOKENS, identity.digest, identity.geometry, PARAMETERS):
        path = folder / "kv" / f"{len(chunks):05d}.safetensors"
        past = compute(path, model, planned, ids, past)
        chunks.append(
            OrderedChunk(
                spec=planned.spec,
                tokens=planned.tokens,
                flops=planned.flops,
                output=digest_of_file(path),
                output_bytes=path.stat().st_size,
            )
        )
    key = SigningKey.generate()
    made = assemble_cube(_order(identity, tuple(chunks)), key)
    for name, content in zip((README_FILE, MANIFEST_FILE, PROVENANCE_FILE), made.blobs, strict=True):
        (folder / name).write_bytes(content)
    cube = MemCube.open(folder)
    cube.verify([key.public_key])
    return cube


def compute(path: Path, model: Any, planned: PlannedChunk, ids: list[int], past: list[Pair]) -> list[Pair]:
    """Write one chunk's file; the past of the next one."""
    own = ids[planned.spec.start : planned.spec.start + planned.spec.token_count]
    pairs = read_at_once(model.base_model, own, past)
    write_kv(path, own, iter(pairs), torch.bfloat16)
    if not past:
        return pairs
    return [
        (torch.cat([k, new_k], 1), torch.cat([v, new_v], 1))
        for (k, v), (new_k, new_v) in zip(past, pairs, strict=True)
    ]


def _order(identity: ModelIdentity, chunks: tuple[OrderedChunk, ...]) -> AssemblyOrder:
    now = datetime.now(UTC)
    return AssemblyOrder(
        name="bench/text",
        version="1.0.0",
        title="A text to measure with",
        licence="Apache-2.0",
        base=identity,
        layout=Layout(kind=LayoutKind.CHAINED, wrap=Wrap.CHAT, chunk_tokens=CHUNK_TOKENS, sink_tokens=0),
        numerics=Numerics(compute_dtype=ComputeDtype.FLOAT32, store_dtype=StoreDtype.BFLOAT16),
        chunks=chunks,
        sources=(SourceText(uri="docs", digest=digest_of(b""), licence="Apache-2.0", size_bytes=0),),
        min_replicas=1,
        tolerances=BUILT_IN,
        making=Making(
            builder="scripts/bench",
            campaign="bench",
            started_at=now,
            finished_at=now,
            replicas=len(chunks),
            reports_rejected=0,
            spent_flops=sum(chunk.flops for chunk in chunks),
            device_seconds={},
            hosts=(),
            largest_distance=0.0,
        ),
    )
