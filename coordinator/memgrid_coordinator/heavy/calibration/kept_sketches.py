"""Sketches of caches on disk, a file for each way and some chunks: nothing large goes through the coordinator."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from memgrid.kinds.prefill import KV_FILE, KV_FORMAT, ModelGeometry
from memgrid.kinds.sketch import Sketch, parse_sketch, sketch_file, sketch_form
from memgrid.units import StoreDtype
from memgrid_coordinator.heavy.calibration.chunks import Chunk
from memgrid_coordinator.heavy.calibration.spoiling import Cache
from memgrid_coordinator.heavy.calibration.ways import Way


def keep_sketches(
    folder: Path, way: Way, cheat: str, chunks: Sequence[Chunk], caches: Sequence[Cache], stores: Sequence[StoreDtype]
) -> Path:
    """Write each cache as a host would, sketch the file, and keep the sketch alone."""
    tensors = {}
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        path = Path(draft) / KV_FILE
        for chunk, cache in zip(chunks, caches, strict=True):
            for store in stores:
                write_cache(path, chunk.ids, cache, store)
                content = sketch_file(path, chunk.spec(store).key)
                tensors[_name(chunk.index, store)] = np.frombuffer(content, dtype=np.uint8)
    words = re.sub(r"[^a-z0-9]+", "-", f"{way.name} {cheat}".lower()).strip("-")
    kept = folder / f"{words}.{chunks[0].index:05d}.safetensors"
    save_file(tensors, kept)
    return kept


def kept_sketch(file: Path, chunk: Chunk, store: StoreDtype, geometry: ModelGeometry) -> Sketch | None:
    """A sketch that was kept; None where that way left this chunk out."""
    with safe_open(file, framework="np") as opened:
        name = _name(chunk.index, store)
        if name not in opened.keys():  # noqa: SIM118 - it is no mapping
            return None
        return parse_sketch(opened.get_tensor(name).tobytes(), sketch_form(geometry, store, len(chunk.ids)))


def write_cache(path: Path, ids: Sequence[int], cache: Cache, store: StoreDtype) -> None:
    """A `kv.safetensors` as hosts write it."""
    import torch  # only whoever makes caches needs it: comparing their sketches does not
    from safetensors.torch import save_file as save_torch

    tensors = {"tokens": torch.tensor(list(ids), dtype=torch.int32)}
    for layer, halves in enumerate(cache):
        for half, values in zip("kv", halves, strict=True):
            tensors[f"l{layer}.{half}"] = torch.from_numpy(values).to(getattr(torch, store.value)).contiguous()
    save_torch(tensors, path, metadata={"format": KV_FORMAT})


def _name(index: int, store: StoreDtype) -> str:
    return f"{index}/{store}"
