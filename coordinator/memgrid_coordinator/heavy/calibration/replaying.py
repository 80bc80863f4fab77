"""Replay what was computed as the grid's own audits do, and keep every statistic."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from memgrid.digest import token_bytes
from memgrid.distill.audit import audit
from memgrid.kinds.audit import Audit, share_of
from memgrid.kinds.prefill import KV_FILE
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.tolerances import row_key
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_coordinator.heavy.calibration.chunks import Chunk
from memgrid_coordinator.heavy.calibration.kept_sketches import write_cache
from memgrid_coordinator.heavy.calibration.orders import CacheOrder
from memgrid_coordinator.heavy.calibration.probing import UNIT_LIMITS
from memgrid_coordinator.heavy.calibration.spoiling import Cache
from memgrid_coordinator.heavy.calibration.ways import FINER_FIRST, SAYS_FINER, TF32, Way, claims_of
from memgrid_coordinator.policy.calibrating import HONEST, Samples
from memgrid_coordinator.policy.known_cheats import PREFILL_REPLAY

Shares = dict[str, float]
"""Statistics over what the check widens their limits by."""


def replayed(order: CacheOrder, cheat: str, caches: Sequence[Cache]) -> list[Samples]:
    """Audits of the caches that are to be audited: pieces drawn from the chunk, the same for every way.

    Each right one is: limits that were fitted to two texts turned down a third.
    """
    found = [
        (chunk.index, _shares_of(order, chunk, cache))
        for chunk, cache in zip(order.chunks, caches, strict=True)
        if not cheat or chunk.index in order.audited
    ]
    return list(claimed(PREFILL_REPLAY, order.way, cheat, found, order.audit_store))


def claimed(
    check: str, way: Way, cheat: str, found: Sequence[tuple[int, Shares]], store: StoreDtype | None = None
) -> Iterator[Samples]:
    """Audits of one way under every dtype that it may claim: each is a sample of another row."""
    if not found:
        return
    names = tuple(name for name in found[0][1] if all(name in shares for _, shares in found))
    for claim, called in claims(way, cheat):
        yield Samples(
            row=row_key(check, claim, ComputeDtype.FLOAT32, store),
            cheat=called,
            ways=way.name,
            names=names,
            values=np.array([[shares[name] for name in names] for _, shares in found]),
            pieces=np.array([piece for piece, _ in found]),
        )


def shares_of(found: Audit) -> Shares:
    """What an audit against limits of one found; infinite everywhere when it broke a rule."""
    return {name: share_of(value, found.limits[name]) for name, value in found.statistics.items()}


def claims(way: Way, cheat: str) -> Iterator[tuple[ComputeDtype, str]]:
    """What a host that computes in this way may say it computed in, and what it is then: honest, or which cheat."""
    computed = way.compute_dtype
    if way == TF32:
        yield computed, SAYS_FINER
    elif cheat == HONEST:
        yield computed, HONEST
        yield from ((finer, SAYS_FINER) for finer in FINER_FIRST[: FINER_FIRST.index(computed)])
    else:
        yield from ((claim, cheat) for claim in claims_of(computed))


def _shares_of(order: CacheOrder, chunk: Chunk, cache: Cache) -> Shares:
    with tempfile.TemporaryDirectory(dir=order.folder) as draft:
        inputs = _written(Path(draft), TOKENS_FILE, token_bytes(list(chunk.ids)))
        write_cache(Path(draft) / KV_FILE, chunk.ids, cache, order.audit_store)
        with torch.inference_mode(False):
            found = audit(
                chunk.spec(order.audit_store),
                model_folder=order.model_folder,
                inputs=inputs,
                files={KV_FILE: Path(draft) / KV_FILE},
                compute_dtype=ComputeDtype.FLOAT32,
                draw=sha256(f"calibrate {chunk.index}".encode()).digest(),
                tolerances=UNIT_LIMITS,
            )
    return shares_of(found)


def _written(folder: Path, name: str, content: bytes) -> Mapping[str, Path]:
    (folder / name).write_bytes(content)
    return {name: folder / name}
