"""The past that trained prefixes give a model: one sink, then what each learnt, keys turned to their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memgrid.cube.manifest import ADAPTER_FILE, ParameterManifest
from memgrid.cube.rerotate import check_rerotatable, inverse_frequencies, rerotate

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A prefix as it is joined: K, V [1, kv_heads, tokens, head_dim] of each layer, in float32."""

    pairs: list[tuple[torch.Tensor, torch.Tensor]]
    sink_tokens: int


class PrefixPast:
    """Keys and values of one prefix, or of several one after the other.

    The first keeps its sink; each later one leaves its own out and has its keys rotated by as far as it moves, the
    way distractors stand beside a prefix while it is trained.
    """

    def __init__(self, cubes: Sequence[tuple[Path, ParameterManifest]], model: Any) -> None:
        """Raises InvalidError for files that are not what the manifest says, DoesNotFitError for unmovable keys."""
        parts = [_read(folder, manifest, model) for folder, manifest in cubes]
        if len(parts) > 1:
            base = cubes[0][1].base
            check_rerotatable(base)
            joined = _join(parts, inverse_frequencies(base.rope["all"]))
        else:
            joined = parts[0].pairs
        self._pairs = [(k.to(model.device, model.dtype), v.to(model.device, model.dtype)) for k, v in joined]

    def token_ids(self, filler: int) -> list[int]:
        """As many ids as there are positions: `generate` counts ids, but nothing looks at these."""
        return [filler] * int(self._pairs[0][0].shape[2])

    def layers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """K, V [1, kv_heads, tokens, head_dim] of each layer, in the model's dtype and on its device."""
        yield from self._pairs


def _read(folder: Path, manifest: ParameterManifest, model: Any) -> _Part:
    from memgrid.distill.adapters import PREFIX_TENSOR, load_adapter, prefix_pairs

    adapter = load_adapter(folder / ADAPTER_FILE, manifest.adapter, model)
    return _Part(
        pairs=prefix_pairs(adapter.tensors[PREFIX_TENSOR], model), sink_tokens=manifest.adapter.frozen_tokens
    )


def _join(parts: Sequence[_Part], frequencies: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    layers = []
    for layer in range(len(parts[0].pairs)):
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        end = 0
        for part in parts:
            sink = part.sink_tokens if keys else 0
            k, v = (half[:, :, sink:] for half in part.pairs[layer])
            shift = end - sink
            keys.append(rerotate(k, shift, frequencies) if shift else k)
            values.append(v)
            end += k.shape[2]
        layers.append((torch.cat(keys, dim=2), torch.cat(values, dim=2)))
    return layers
