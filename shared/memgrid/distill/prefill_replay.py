"""Compute pieces of a claimed cache again: layer 0 of every token, and windows over the claimed cache before them.

A cache can be checked in pieces because attention is causal. Each piece assumes that what it builds on is right:
layer 0 ties the cache to the tokens and their positions, the first window to the model, the drawn ones see whatever
was not computed from what stands before it. The model's own code computes all of it; it is stopped when the last
keys and values are known. Shapes: n tokens of the unit, t of them in windows, g KV heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from memgrid.digest import token_ids
from memgrid.distill.claimed_kv import TORCH_STORE, ClaimedKv, Past, SeenEnoughError
from memgrid.distill.model import CausalLM, load_model, without_fused_attention
from memgrid.distill.train_inputs import geometry_of_model
from memgrid.distill.windows import fed, masks_of
from memgrid.kinds.audit import Audit, judge
from memgrid.kinds.part import Part
from memgrid.kinds.prefill import KV_FILE, check_kv_form
from memgrid.kinds.prefill_audit import drawn_windows, replay_flops
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.kinds.tolerances import Tolerances
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype

PAST_FOLDER = "past"
FIRST_TOKENS = 16
"""At the very beginning of a text, where there is little to attend to, rounding shows several times as strongly."""
_PIECE_TOKENS, _PIECE_TOKENS_AGAIN = 512, 96
_SMALLEST = 1e-30
_OWN_LIMIT = 0.3
"""Three times what rounding to 16 bits makes of the first tokens, and less than one wrong tile of a product does."""

Doubles = npt.NDArray[np.float64]


def audit_prefill(
    spec: PrefillSpec,
    *,
    model_folder: Path,
    inputs: Mapping[str, Path],
    files: Mapping[str, Path],
    compute_dtype: ComputeDtype,
    draw: bytes,
    tolerances: Tolerances,
    again: bool = False,
    part: Part | None = None,
) -> Audit:
    """Layer 0 of all tokens and the windows that `draw` picks, in float32 on the CPU.

    `inputs` hold, for a unit that continues others, their accepted files as `past/00000`, `past/00001` and so on.
    With `again`, windows are computed one by one and without fused attention, and layer 0 in smaller pieces.
    """
    tokens = token_ids(inputs[TOKENS_FILE].read_bytes())
    model = load_model(model_folder, torch.float32, torch.device("cpu"))
    geometry = geometry_of_model(model)
    check_kv_form(files[KV_FILE], spec, tokens, geometry)
    claimed = ClaimedKv(past_files(inputs), files[KV_FILE], spec.start)
    windows = drawn_windows(spec, draw) if part is None else (range(part.pieces[0], part.pieces[-1] + 1),)
    with without_fused_attention(model, again):
        first = first_layer(model, claimed, tokens, piece=_PIECE_TOKENS_AGAIN if again else _PIECE_TOKENS)
        others = replayed_windows(model, claimed, tokens, windows, together=not again)
    statistics = {**first.of_first_layer(), **others.of_windows(spec.start)}
    limits = {
        name: limit
        for check in ("prefill.layer0", "prefill.window")
        for name, limit in tolerances.row(check, compute_dtype, ComputeDtype.FLOAT32, spec.store_dtype).items()
    }
    found = judge({name: value for name, (value, _) in statistics.items()}, limits, flops=0)
    _, where = statistics[found.worst[0]]
    return judge(found.statistics, limits, where=where, flops=replay_flops(spec, geometry, windows))


def own_difference(
    model: CausalLM, spec: PrefillSpec, tokens: Sequence[int], past: Sequence[Path], own: Path, draw: bytes
) -> str | None:
    """What a host sees that computes a window of its own answer again, on its own device; None when all is well.

    Not a check of rounding, for which a host has no limits of its model: what it names are machines that do not
    compute the same twice.
    """
    windows = drawn_windows(spec, draw)
    chosen = windows[1 + draw[0] % (len(windows) - 1)] if len(windows) > 1 else windows[0]
    claimed = ClaimedKv(past, own, spec.start)
    statistics = replayed_windows(model, claimed, tokens, [chosen], together=False).of_windows(spec.start)
    for name, (value, where) in statistics.items():
        if name.endswith("layer") and not value <= _OWN_LIMIT:
            return f"{name} {value:.1e}, at {where}"
    return None


def past_files(inputs: Mapping[str, Path]) -> list[Path]:
    """The files that a unit continues, in order."""
    return [inputs[name] for name in sorted(inputs) if name.startswith(f"{PAST_FOLDER}/")]


def first_layer(model: CausalLM, claimed: ClaimedKv, tokens: Sequence[int], *, piece: int) -> Deviations:
    """Layer 0 of every token, so many at a time: embedding, norm, projections and turned keys, nothing else."""
    found = Deviations.empty(1, [range(0, len(tokens))])
    for begin in range(0, len(tokens), piece):
        span = range(begin, min(len(tokens), begin + piece))

        def watch(_: int, keys: torch.Tensor, values: torch.Tensor, span: range = span) -> None:
            found.note(0, slice(span.start, span.stop), (keys[0], values[0]), claimed, [span])

        with suppress(SeenEnoughError):
            positions = range(claimed.start + span.start, claimed.start + span.stop)
            fed(model, tokens[begin : span.stop], positions, Past(None, 0, watch, layers=1), None)
    return found


def replayed_windows(
    model: CausalLM, claimed: ClaimedKv, tokens: Sequence[int], windows: Sequence[range], *, together: bool
) -> Deviations:
    """Every layer of the windows, in one pass where the model's masks allow it, and otherwise one by one."""
    found = Deviations.empty(claimed.layers, windows)
    at = [range(claimed.start + window.start, claimed.start + window.stop) for window in windows]
    seen = max(window.start for window in at)
    masks = masks_of(model, at, seen) if together else None
    groups = [list(windows)] if masks is not None else [[window] for window in windows]
    column = 0
    for group in groups:
        columns = slice(column, column + sum(map(len, group)))
        column = columns.stop

        def watch(
            layer: int,
            keys: torch.Tensor,
            values: torch.Tensor,
            columns: slice = columns,
            group: Sequence[range] = group,
        ) -> None:
            found.note(layer, columns, (keys[0], values[0]), claimed, group)

        ids = [tokens[place] for window in group for place in window]
        positions = [claimed.start + place for window in group for place in window]
        reach = seen if masks is not None else positions[0]
        with suppress(SeenEnoughError):
            fed(model, ids, positions, Past(claimed, reach, watch, layers=claimed.layers), masks)
    return found


Found = dict[str, tuple[float, str]]
"""Of each statistic its value, and where it is largest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deviations:
    """Squared distances of a claim from its replay, and squares of the replay: of K and V [2, layers, t] each."""

    windows: tuple[range, ...]
    apart: Doubles
    norms: Doubles

    @staticmethod
    def empty(layers: int, windows: Sequence[range]) -> Deviations:
        shape = (2, layers, sum(map(len, windows)))
        return Deviations(windows=tuple(windows), apart=np.zeros(shape), norms=np.zeros(shape))

    def note(
        self,
        layer: int,
        columns: slice,
        made: Sequence[torch.Tensor],
        claimed: ClaimedKv,
        tokens: Sequence[range],
    ) -> None:
        """Set new K and V [g, t, d] against the claimed ones of these tokens, rounded as those were stored."""
        store = TORCH_STORE[claimed.own.dtype]
        for half, (new, claim) in enumerate(zip(made, claimed.of_unit(layer, tokens), strict=True)):
            rounded = new.to("cpu", store).float()
            self.apart[half, layer, columns] = (rounded - claim).square().sum(dim=(0, 2)).double().numpy()
            self.norms[half, layer, columns] = rounded.square().sum(dim=(0, 2)).double().numpy()

    def of_first_layer(self) -> Found:
        """The worst and the median token."""
        found: Found = {}
        for half, name in enumerate("KV"):
            each = _relative(self.apart[half, 0], self.norms[half, 0])
            found[f"layer 0 {name} worst token"] = (float(each.max()), f"layer 0, token {int(each.argmax())}")
            found[f"layer 0 {name} median token"] = (float(np.median(each)), "layer 0")
        return found

    def of_windows(self, start: int) -> Found:
        """The statistics of the first tokens of all, and of other windows, for a unit that starts at `start`."""
        is_first = np.array([start + token < FIRST_TOKENS for token in self._every_token()])
        found: Found = {}
        for half, name in enumerate("KV"):
            for group, columns in (("first tokens", is_first), ("window", ~is_first)):
                if columns.any():
                    layers = _relative(*(part[half][:, columns].sum(axis=1) for part in (self.apart, self.norms)))
                    found[f"{group} {name} median layer"] = (float(np.median(layers)), self._widest(half, columns))
                    layer = int(layers.argmax())
                    where = f"layer {layer}, {self._widest(half, columns, layer)}"
                    found[f"{group} {name} worst layer"] = (float(layers[layer]), where)
            if not is_first.all():
                found |= self._of_blocks(half, name, ~is_first)
        return found

    def _of_blocks(self, half: int, name: str, columns: npt.NDArray[np.bool_]) -> Found:
        """The worst layer of a window, and of a token."""
        blocks = _relative(*self._blocks(half, columns))
        layer, place = np.unravel_index(blocks.argmax(), blocks.shape)
        found = {
            f"window {name} worst block": (float(blocks.max()), f"layer {layer}, {_tokens(self.windows[place])}")
        }
        each = _relative(self.apart[half], self.norms[half]) * columns
        layer, place = np.unravel_index(each.argmax(), each.shape)
        token = self._every_token()[int(place)]
        return {**found, f"window {name} worst token": (float(each.max()), f"layer {layer}, token {token}")}

    def _widest(self, half: int, columns: npt.NDArray[np.bool_], layer: int | None = None) -> str:
        """The window that lies furthest off, in a layer or in all of them together."""
        layers = slice(None) if layer is None else slice(layer, layer + 1)
        apart, norms = (part[layers] for part in self._blocks(half, columns))
        return _tokens(self.windows[int(_relative(apart.sum(axis=0), norms.sum(axis=0)).argmax())])

    def _blocks(self, half: int, columns: npt.NDArray[np.bool_]) -> tuple[Doubles, Doubles]:
        starts = np.cumsum([0, *map(len, self.windows[:-1])])
        apart = np.add.reduceat(self.apart[half] * columns, starts, axis=1)
        return apart, np.add.reduceat(self.norms[half] * columns, starts, axis=1)

    def _every_token(self) -> list[int]:
        return [token for window in self.windows for token in window]


def _tokens(window: range) -> str:
    return f"tokens {window.start} to {window.stop}"


def _relative(apart: Doubles, norms: Doubles) -> Doubles:
    found: Doubles = np.sqrt(apart / np.maximum(norms, _SMALLEST))
    return found
