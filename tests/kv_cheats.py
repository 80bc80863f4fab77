"""Ways to hand in a cache that was not computed as asked, each made with a real model; and the honest ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memgrid.digest import digest_of, token_bytes
from memgrid.distill.claimed_kv import TORCH_STORE
from memgrid.distill.prefill import Pair, read_at_once
from memgrid.kinds.prefill import KV_FILE
from memgrid.kinds.prefill_kind import TOKENS_FILE
from memgrid.specs import PrefillSpec
from memgrid.units import ComputeDtype, StoreDtype
from memgrid_volunteer.kinds.prefill import read_past, write_kv

CPU = torch.device("cpu")
Pairs = list[Pair]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KvUnit:
    """A unit of a model: its tokens, those before it, and its input files; `model` is a base model in float32."""

    folder: Path
    model: Any
    spec: PrefillSpec
    tokens: list[int]
    former: list[int]
    inputs: dict[str, Path]

    @property
    def past(self) -> Pairs:
        return read_past([path for name, path in sorted(self.inputs.items()) if "past/" in name], self.spec.start)


def make_kv_unit(
    folder: Path,
    model: Any,
    where: Path,
    ids: Sequence[int],
    *,
    start: int = 0,
    store: StoreDtype = StoreDtype.FLOAT32,
) -> KvUnit:
    """The tokens from `start` on as a unit; those before come as two accepted files."""
    where.mkdir(parents=True, exist_ok=True)
    former, tokens = list(ids[:start]), list(ids[start:])
    inputs = {TOKENS_FILE: where / TOKENS_FILE}
    inputs[TOKENS_FILE].write_bytes(token_bytes(tokens))
    done: Pairs = []
    for number, part in enumerate((former[: start // 3], former[start // 3 :]) if start else ()):
        made = read_at_once(model, part, done)
        path = inputs[f"past/{number:05d}"] = where / f"past-{number}.safetensors"
        write_kv(path, part, iter(made), TORCH_STORE[store])
        done = joined(done, made)
    spec = PrefillSpec(
        model=digest_of(b"model"),
        tokens=digest_of(token_bytes(tokens)),
        token_count=len(tokens),
        start=start,
        parent=None,
        compute_dtype=ComputeDtype.AUTO,
        store_dtype=store,
    )
    return KvUnit(folder=folder, model=model, spec=spec, tokens=tokens, former=former, inputs=inputs)


def claim(unit: KvUnit, pairs: Pairs, where: Path) -> dict[str, Path]:
    """The unit's output with these numbers."""
    where.mkdir(parents=True, exist_ok=True)
    write_kv(where / KV_FILE, unit.tokens, iter(pairs), TORCH_STORE[unit.spec.store_dtype])
    return {KV_FILE: where / KV_FILE}


def honest(unit: KvUnit, *, model: Any = None, tokens: Sequence[int] | None = None) -> Pairs:
    return read_at_once(
        unit.model if model is None else model, unit.tokens if tokens is None else list(tokens), unit.past
    )


def in_pieces(unit: KvUnit, size: int, *, model: Any = None) -> Pairs:
    """The honest cache, so many tokens at a time."""
    model = unit.model if model is None else model
    done, begun = unit.past, unit.spec.start
    for at in range(0, len(unit.tokens), size):
        done = joined(done, read_at_once(model, unit.tokens[at : at + size], done))
    return [(k[:, begun:], v[:, begun:]) for k, v in done]


def joined(past: Pairs, new: Pairs) -> Pairs:
    if not past:
        return new
    return [
        (torch.cat([k, more_k.to(k.dtype)], 1), torch.cat([v, more_v.to(v.dtype)], 1))
        for (k, v), (more_k, more_v) in zip(past, new, strict=True)
    ]


Cheat = Callable[[KvUnit], Pairs]


def int8_weights(unit: KvUnit) -> Pairs:
    return honest(unit, model=with_int8_weights(unit.model))


def with_int8_weights(model: Any) -> Any:
    cheap = copy.deepcopy(model)
    for name, parameter in cheap.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            step = parameter.data.abs().amax(dim=1, keepdim=True) / 127
            parameter.data = (parameter.data / step).round() * step
    return cheap


def skipped_layer(unit: KvUnit) -> Pairs:
    """The last layer but one does nothing; its own keys and values are computed, as cheaply as may be."""
    cheap = copy.deepcopy(unit.model)
    for parameter in (cheap.layers[-2].mlp.down_proj.weight, cheap.layers[-2].self_attn.o_proj.weight):
        parameter.data.zero_()
    return honest(unit, model=cheap)


def layers_swapped(unit: KvUnit) -> Pairs:
    pairs = honest(unit)
    pairs[-1], pairs[-2] = pairs[-2], pairs[-1]
    return pairs


def one_token_changed(unit: KvUnit) -> Pairs:
    place = len(unit.tokens) // 2 + 1
    tokens = [*unit.tokens[:place], (unit.tokens[place] + 7) % 300, *unit.tokens[place + 1 :]]
    return honest(unit, tokens=tokens)


def rope_off_by_one(unit: KvUnit) -> Pairs:
    """Everything one position further on, as a host does that counts a token which is not there."""
    ids = torch.tensor([[*unit.former, *unit.tokens]])
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        positions = torch.arange(1, ids.shape[1] + 1)[None]
        unit.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    return [(layer.keys[0, :, unit.spec.start :], layer.values[0, :, unit.spec.start :]) for layer in cache.layers]


def copied_chunk(unit: KvUnit) -> Pairs:
    """Another text's cache."""
    return honest(unit, tokens=[(3 * token + 1) % 300 for token in unit.tokens])


def lazy_last_quarter(unit: KvUnit) -> Pairs:
    """Layer 0, which is always looked at, is right; the other layers of the last quarter repeat the third."""
    pairs = honest(unit)
    quarter = len(unit.tokens) // 4
    copied = [(_repeated(k, quarter), _repeated(v, quarter)) for k, v in pairs]
    return [pairs[0], *copied[1:]]


def _repeated(half: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([half[:, :-count], half[:, -2 * count : -count]], 1)


def context_cut(unit: KvUnit) -> Pairs:
    """From the middle on, the first half is not looked at; positions are right."""
    half = len(unit.tokens) // 2
    pairs = honest(unit)
    blind = copy.deepcopy(unit)
    ids = torch.tensor([unit.tokens[half:]])
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        first = unit.spec.start + half
        positions = torch.arange(first, first + ids.shape[1])[None]
        blind.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    rest = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    return joined([(k[:, :half], v[:, :half]) for k, v in pairs], rest)


def without_its_past(unit: KvUnit) -> Pairs:
    """A chained unit as if nothing came before it, keys at the right positions."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        positions = torch.arange(unit.spec.start, unit.spec.start + len(unit.tokens))[None]
        unit.model(
            input_ids=torch.tensor([unit.tokens]), position_ids=positions, past_key_values=cache, use_cache=True
        )
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def noise(unit: KvUnit) -> Pairs:
    """One per cent of it on everything."""
    generator = torch.Generator().manual_seed(5)

    def noisy(half: torch.Tensor) -> torch.Tensor:
        return half + 0.01 * half.square().mean().sqrt() * torch.randn(half.shape, generator=generator)

    return [(noisy(k), noisy(v)) for k, v in honest(unit)]


ANY = (ComputeDtype.FLOAT32, ComputeDtype.FLOAT16, ComputeDtype.BFLOAT16)
EXACT = (ComputeDtype.FLOAT32,)
CHEATS: list[tuple[Cheat, tuple[ComputeDtype, ...]]] = [
    (int8_weights, EXACT),
    (skipped_layer, ANY),
    (layers_swapped, ANY),
    (one_token_changed, ANY),
    (rope_off_by_one, ANY),
    (copied_chunk, ANY),
    (lazy_last_quarter, ANY),
    (context_cut, ANY),
    (without_its_past, ANY),
    (noise, EXACT),
]
"""The cheat, and the dtypes it is caught under, whichever of them it claims, on a model of a few layers."""


def with_model(folder: Path, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """A base model of its own, apart from the one that replays hold."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    return model.eval().requires_grad_(False).base_model


def honest_ways(unit: KvUnit) -> Iterator[tuple[str, ComputeDtype, Pairs]]:
    """The same numbers by other kernels, in other pieces, and in 16 bits."""
    half = with_model(unit.folder, torch.bfloat16)
    yield "at once", ComputeDtype.FLOAT32, honest(unit)
    yield "pieces of 17", ComputeDtype.FLOAT32, in_pieces(unit, 17)
    yield "eager", ComputeDtype.FLOAT32, honest(unit, model=with_model(unit.folder, torch.float32, "eager"))
    yield "bfloat16", ComputeDtype.BFLOAT16, honest(unit, model=half)
    pieces = in_pieces(unit, 33, model=half) if not unit.former else None
    if pieces:
        yield "bfloat16 in pieces", ComputeDtype.BFLOAT16, pieces
