"""From chunk files to a cache that a model continues from."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgrid.cube.caches import append, new_cache
from memgrid.cube.manifest import CubeManifest, LayoutKind
from memgrid.cube.rerotate import check_rerotatable, inverse_frequencies, rerotate
from memgrid.errors import InvalidError

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


class Link(StrEnum):
    """How chunks are joined: `exact` as they are, `rerotate` moved to their place in the document."""

    EXACT = "exact"
    REROTATE = "rerotate"


def link_for(manifest: CubeManifest, wanted: str | None) -> Link:
    """The policy to join this cube's chunks with; raises InvalidError when the wanted one can't be had."""
    possible = Link.EXACT if manifest.layout.kind is LayoutKind.CHAINED else Link.REROTATE
    if wanted is not None and wanted != possible:
        raise InvalidError(f"link: a cube of {manifest.layout.kind} chunks takes {possible}, found {wanted!r}")
    return possible


def build_cache(folder: Path, manifest: CubeManifest, model: Any, link: Link) -> DynamicCache:
    """A fresh cache [1, kv_heads, token_count, head_dim] a layer, in the model's dtype and on its device.

    Files are mapped; each number is read once, cast once and written once before the cache takes it over.
    """
    from safetensors import safe_open

    paths = [folder / chunk.path for chunk in manifest.chunks]
    files: list[Any] = [safe_open(path, framework="pt", device="cpu") for path in paths]
    mover = _Mover(manifest) if link is Link.REROTATE else None
    cache = new_cache()
    for layer in range(manifest.base.geometry.layers):
        k: list[torch.Tensor] = [file.get_tensor(f"l{layer}.k") for file in files]
        v: list[torch.Tensor] = [file.get_tensor(f"l{layer}.v") for file in files]
        if mover is not None:
            k, v = mover.move_keys(k), mover.drop_sinks(v)
        append(cache, layer, _join(k, model), _join(v, model))
    return cache


def _join(parts: Sequence[torch.Tensor], model: Any) -> torch.Tensor:
    """[heads, n_i, dim] each -> [1, heads, sum n_i, dim] as the model wants it."""
    import torch

    if len(parts) == 1:
        return parts[0].unsqueeze(0).to(model.device, model.dtype)
    heads, _, dim = parts[0].shape
    joined = torch.empty(
        (1, heads, sum(part.shape[1] for part in parts), dim), dtype=model.dtype, device=model.device
    )
    end = 0
    for part in parts:
        start, end = end, end + part.shape[1]
        joined[0, :, start:end].copy_(part)
    return joined


class _Mover:
    """Puts independent chunks behind one another: the sink once, every later chunk moved to where it belongs."""

    def __init__(self, manifest: CubeManifest) -> None:
        check_rerotatable(manifest.base)
        self._sink = manifest.layout.sink_tokens
        self._frequencies = inverse_frequencies(manifest.base.rope["all"])
        self._shifts = [0]
        for chunk in manifest.chunks[:-1]:
            self._shifts.append(self._shifts[-1] + chunk.token_count - self._sink)

    def move_keys(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        own = self.drop_sinks(parts)
        moved = [rerotate(k, shift, self._frequencies) for k, shift in zip(own[1:], self._shifts[1:], strict=True)]
        return [own[0], *moved]

    def drop_sinks(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [parts[0], *(part[:, self._sink :] for part in parts[1:])]
