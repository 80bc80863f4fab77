"""The past that an activation cube gives a model: from chunk files to keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgrid.cube.manifest import ActivationManifest, LayoutKind
from memgrid.cube.rerotate import check_rerotatable, inverse_frequencies, rerotate
from memgrid.digest import digest_of, token_bytes
from memgrid.errors import InvalidError, NotVerifiedError
from memgrid.kinds.tensorfile import TensorFile

if TYPE_CHECKING:
    import torch


class Link(StrEnum):
    """How chunks are joined: `exact` as they are, `rerotate` moved to their place in the document."""

    EXACT = "exact"
    REROTATE = "rerotate"


def link_for(manifest: ActivationManifest, wanted: str | None) -> Link:
    """The policy to join this cube's chunks with; raises InvalidError when the wanted one can't be had."""
    possible = Link.EXACT if manifest.layout.kind is LayoutKind.CHAINED else Link.REROTATE
    if wanted is not None and wanted != possible:
        raise InvalidError(f"link: a cube of {manifest.layout.kind} chunks takes {possible}, found {wanted!r}")
    return possible


class ChunkPast:
    """The keys and values of a text, read from an activation cube whenever a cache is wanted.

    Read anew each time, since a large text's would take as much memory a second time if they were kept.
    """

    def __init__(self, folder: Path, manifest: ActivationManifest, model: Any, link: Link) -> None:
        """Raises DoesNotFitError when chunks have to be moved and the model's keys can't be."""
        self._paths = [folder / chunk.path for chunk in manifest.chunks]
        self._layers = manifest.base.geometry.layers
        self._mover = _Mover(manifest) if link is Link.REROTATE else None
        self._model = model
        self.ids = text_ids(folder, manifest)

    def token_ids(self, filler: int) -> list[int]:
        """The text's tokens."""
        return self.ids

    def layers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """K, V [1, kv_heads, tokens, head_dim] of each layer, in the model's dtype and on its device.

        Files are mapped; each number is read once, cast once and written once before a cache takes it over.
        """
        from safetensors import safe_open

        files: list[Any] = [safe_open(path, framework="pt", device="cpu") for path in self._paths]
        for layer in range(self._layers):
            k: list[torch.Tensor] = [file.get_tensor(f"l{layer}.k") for file in files]
            v: list[torch.Tensor] = [file.get_tensor(f"l{layer}.v") for file in files]
            if self._mover is not None:
                k, v = self._mover.move_keys(k), self._mover.drop_sinks(v)
            yield _join(k, self._model), _join(v, self._model)


def text_ids(folder: Path, manifest: ActivationManifest) -> list[int]:
    """The tokens of the text, in order; raises NotVerifiedError when they are not the manifest's."""
    ids: list[int] = []
    for chunk in manifest.chunks:
        stored = TensorFile.open(folder / chunk.path).bits("tokens").tolist()
        is_repeated = ids and manifest.layout.kind is LayoutKind.INDEPENDENT
        ids += stored[manifest.layout.sink_tokens :] if is_repeated else stored
    if digest_of(token_bytes(ids)) != manifest.tokens:
        raise NotVerifiedError(f"{manifest.name}: the chunks do not hold the manifest's tokens")
    return ids


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

    def __init__(self, manifest: ActivationManifest) -> None:
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
