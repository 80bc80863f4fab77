"""Compute the caches of chunks in one way, honest or not, and keep their sketches.

Shapes: L layers, h KV heads, n tokens, d head dimension. A cache is a (K, V) [h, n, d] a layer, in float32.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from memgrid.distill.model import CausalLM
from memgrid_coordinator.heavy import workers
from memgrid_coordinator.heavy.calibration.kept_sketches import keep_sketches
from memgrid_coordinator.heavy.calibration.orders import CacheOrder, CachesMade
from memgrid_coordinator.heavy.calibration.replaying import replayed
from memgrid_coordinator.heavy.calibration.spoiling import OTHER_IDS, SPOILT, Cache
from memgrid_coordinator.heavy.calibration.ways import BASE, Way
from memgrid_coordinator.heavy.calibration.weights import model_of

_CAPS = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
"""Each of torch's libraries reads its own, once, when its process begins."""


def make_caches(order: CacheOrder) -> CachesMade:
    """Compute, spoil where asked to, and keep the sketches.

    The plain way also brings what is made from a finished cache, for that takes no model.
    """
    if order.way.is_capped and os.environ.get("ATEN_CPU_CAPABILITY") != _CAPS["ATEN_CPU_CAPABILITY"]:
        return _in_capped_process(order)
    model, moved = model_of(order.model_folder, order.way, order.cheat, order.texts)
    spoil = OTHER_IDS.get(order.cheat)
    spoilt = [chunk.ids if spoil is None else spoil(chunk.ids) for chunk in order.chunks]
    with _threads(order.way.threads), torch.inference_mode():
        caches = list(_caches(model.base_model, order.way, spoilt, order.cheat))
    made = {order.cheat: caches}
    if order.way == BASE and not order.cheat:
        for name, change in SPOILT.items():
            made[name] = [change(caches, place, chunk.index) for place, chunk in enumerate(order.chunks)]
    return CachesMade(
        files={
            cheat: keep_sketches(order.folder, order.way, cheat, order.chunks, found, order.stores)
            for cheat, found in made.items()
        },
        samples=tuple(each for cheat, found in made.items() for each in replayed(order, cheat, found)),
        moved=moved,
    )


def _in_capped_process(order: CacheOrder) -> CachesMade:
    """The same in a process that begins with capped instructions."""
    before = {name: os.environ.get(name) for name in _CAPS}
    os.environ.update(_CAPS)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=workers.begin) as pool:
            return pool.submit(make_caches, order).result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _caches(base: CausalLM, way: Way, texts: Sequence[Sequence[int]], cheat: str) -> Iterator[Cache]:
    shift = 1 if cheat == "RoPE off by one" else 0
    if cheat == "context cut in half":
        for ids in texts:
            half = len(ids) // 2
            one, other = _forward(base, [ids[:half]], 0), _forward(base, [ids[half:]], half)
            yield [
                (np.concatenate([a, c], axis=1), np.concatenate([b, d], axis=1))
                for (a, b), (c, d) in zip(one[0], other[0], strict=True)
            ]
        return
    for start in range(0, len(texts), way.rows):
        rows = texts[start : start + way.rows]
        yield from _forward(base, rows, shift, piece=way.piece_tokens, padding=way.padding_tokens)


def _forward(
    base: CausalLM, rows: Sequence[Sequence[int]], first: int, *, piece: int = 0, padding: int = 0
) -> list[Cache]:
    """The caches of rows of equal length whose first tokens have the position `first`."""
    ids = torch.tensor([[0] * padding + list(row) for row in rows])
    positions = (torch.arange(ids.shape[1]) - padding).clamp(min=0) + first
    seen = torch.ones_like(ids)
    seen[:, :padding] = 0
    cache: Any = DynamicCache()
    step = piece or ids.shape[1]
    for start in range(0, ids.shape[1], step):
        part = slice(start, min(start + step, ids.shape[1]))
        base(
            input_ids=ids[:, part],
            position_ids=positions[part].expand(len(rows), -1),
            attention_mask=seen[:, : part.stop] if padding else None,
            past_key_values=cache,
            use_cache=True,
        )
    return [_cache_of(cache, base.config.num_hidden_layers, row, padding) for row in range(len(rows))]


def _cache_of(cache: Any, layers: int, row: int, padding: int) -> Cache:
    """What one row left; a layer that was skipped gets its neighbour's."""
    filled = {number: layer for number, layer in enumerate(cache.layers) if layer.keys is not None}
    pairs: Cache = []
    for number in range(layers):
        nearest = filled[min(filled, key=lambda other: (abs(other - number), other))]
        keys, values = (half[row, :, padding:].float().numpy().copy() for half in (nearest.keys, nearest.values))
        pairs.append((keys, values))
    return pairs


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
