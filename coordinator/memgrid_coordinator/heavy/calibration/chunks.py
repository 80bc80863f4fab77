"""Chunks of tokens whose caches are compared."""

from __future__ import annotations

from dataclasses import dataclass

from memgrid.digest import Digest, digest_of, token_bytes
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, StoreDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens to compute a cache of; `model` is whose."""

    index: int
    ids: tuple[int, ...]
    model: Digest

    def spec(self, store: StoreDtype) -> PrefillSpec:
        return PrefillSpec(
            model=self.model,
            tokens=digest_of(token_bytes(list(self.ids))),
            token_count=len(self.ids),
            start=0,
            parent=None,
            compute_dtype=ComputeDtype.AUTO,
            store_dtype=store,
        )
