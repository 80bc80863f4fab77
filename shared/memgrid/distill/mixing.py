"""Distractors: adapters of other texts attached beside the trained one, so that it learns to live among them.

Knows prefixes and how to move them; knows nothing of files, batches or losses. Naively joined, prefixes trained alone
collapse; trained among others they compose ("Cartridges at Scale", arXiv 2606.04557). Shapes: m rows, L layers, h KV
heads, p tokens of the trained prefix, P of the whole past, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from memgrid.cube.geometry import config_of, rope_of, sliding_window_of
from memgrid.cube.rerotate import check_rotation, inverse_frequencies, rerotate
from memgrid.distill.adapters import PREFIX_TENSOR, Adapter, Pair, prefix_geometry, prefix_pairs
from memgrid.distill.batches import counter_words
from memgrid.distill.model import CausalLM
from memgrid.errors import InvalidError
from memgrid.specs import AdapterKind, TrainSpec

TOGETHER_MAX = 3
"""Distractors beside the trained prefix in one row: between one and so many."""


class Mixer:
    """Decides by counter which rows get which distractors, and lays their caches out.

    There is one sink, the trained prefix's first token; of everything else the tokens after its own sink follow in
    the order drawn, keys turned to where they stand.
    """

    def __init__(self, spec: TrainSpec, distractors: Sequence[Adapter], model: CausalLM) -> None:
        """Raises InvalidError for adapters that are no prefixes, DoesNotFitError where keys can't be moved."""
        if {spec.adapter.kind, *(each.spec.kind for each in distractors)} != {AdapterKind.PREFIX}:
            raise InvalidError("distractors: only prefixes can be trained among distractors, and only among prefixes")
        config = config_of(model.config.to_dict())
        rope = rope_of(config, prefix_geometry(model)[2])
        check_rotation(str(config.get("model_type")), sliding_window_of(config), rope)
        self._spec = spec
        self._frequencies = inverse_frequencies(rope["all"]).to(model.device)
        # Without their sinks: K, V [L, h, p_i - 1, d].
        self._others = [_stacked(prefix_pairs(each.tensors[PREFIX_TENSOR], model), 0) for each in distractors]

    def order(self, step: int, row: int) -> tuple[int | None, ...]:
        """What stands in a row's past: numbers of distractors, and None for the trained prefix."""
        spec, count = self._spec, len(self._others)
        words = counter_words(f"mix {spec.seed} {spec.stream} {step} {row}", 3 + count)
        if int(words[0]) >= spec.distractor_share * 2.0**64:
            return (None,)
        together = 1 + int(words[1]) % min(TOGETHER_MAX, count)
        drawn: list[int | None] = [int(index) for index in words[3:].argsort(kind="stable")[:together]]
        drawn.insert(int(words[2]) % (together + 1), None)
        return tuple(drawn)

    def mix(self, own: list[Pair], step: int, rows: range) -> tuple[list[Pair], torch.Tensor]:
        """The past [m, h, P, d] of each layer for these rows of a step, and where it is not filling [m, P].

        P is the longest of all rows of the step, so it does not depend on which of them are computed together.
        """
        length = max(self._length(own, self.order(step, row)) for row in range(self._spec.batch_rows))
        laid = [self._lay_out(own, number, self.order(step, row)) for number, row in enumerate(rows)]
        visible = torch.zeros(len(laid), length, dtype=torch.bool, device=laid[0][0].device)
        for number, (k, _) in enumerate(laid):
            visible[number, : k.shape[2]] = True
        keys, values = (
            torch.stack([functional.pad(pair[half], (0, 0, 0, length - pair[half].shape[2])) for pair in laid])
            for half in (0, 1)
        )  # [m, L, h, P, d]
        return [(keys[:, layer], values[:, layer]) for layer in range(keys.shape[1])], visible

    def _length(self, own: list[Pair], order: tuple[int | None, ...]) -> int:
        parts = (own[0][0][:, :, 1:] if which is None else self._others[which][0] for which in order)
        return 1 + sum(int(part.shape[2]) for part in parts)

    def _lay_out(self, own: list[Pair], number: int, order: tuple[int | None, ...]) -> Pair:
        """K, V [L, h, P', d] of one row."""
        sink = [torch.stack([pair[half][number, :, :1] for pair in own]) for half in (0, 1)]
        keys, values, position = [sink[0]], [sink[1]], 1
        for which in order:
            k, v = _stacked(own, number) if which is None else self._others[which]
            shift = position - 1
            # At its own place a key stays as it is, to the bit.
            keys.append(rerotate(k, shift, self._frequencies) if shift else k)
            values.append(v)
            position += k.shape[2]
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def _stacked(pairs: list[Pair], row: int) -> Pair:
    """K, V [L, h, p - 1, d] of a row, without the sink."""
    return (
        torch.stack([k[row, :, 1:] for k, _ in pairs]),
        torch.stack([v[row, :, 1:] for _, v in pairs]),
    )
