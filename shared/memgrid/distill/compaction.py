"""Compact a text's KV cache into a few virtual tokens in closed form, so that attention gives what it gave before.

Knows attention, rotary keys and least squares; knows nothing of training, files or campaigns. Source: Attention
Matching (arXiv 2602.16284), in three steps for each KV head by itself: keys are chosen where the queries look, are
bent so that they carry the mass of all the others, and values are fitted by least squares. What is matched here is
the teacher's attention, layer after layer on top of layers that are compacted already, so that later layers make up
for what earlier ones lost. Shapes: h heads, g KV heads, d head dimension, n tokens of the text, p virtual tokens,
t tokens of the talks, q queries of a KV head (h / g times the matched tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from memgrid.cube.geometry import config_of, rope_of, sliding_window_of
from memgrid.cube.rerotate import check_rotation, inverse_frequencies, rerotate
from memgrid.distill.adapters import Pair, prefix_geometry
from memgrid.distill.model import CausalLM
from memgrid.distill.shared_context import Context, read_context

ATTENTION = "memgrid_matching"
_KEY_RIDGE = 1e-3
_VALUE_RIDGE = 1e-2
"""How strongly keys and values stay what they were in the text, relative to what the queries say of them."""
_MASS_STEPS = 200
_BIAS_LEAST = 1e-4
_KEYS_AT_ONCE = 64
"""Keys are bent so many at a time: memory is q * d floats for each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """The same words behind the text, as the teacher reads them, and behind the prefix, as the student does.

    Their last `matched` tokens are equal; what stands before may differ.
    """

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    matched: int


def check_compactable(model: CausalLM) -> None:
    """Raises DoesNotFitError naming why keys of this model can't be moved, which compaction needs."""
    config = config_of(model.config.to_dict())
    check_rotation(str(config.get("model_type")), sliding_window_of(config), _rope(model))


def compact(model: CausalLM, text: Sequence[int], virtual_tokens: int, talks: Sequence[Talk]) -> list[Pair]:
    """K, V [1, g, p, d] of each layer; token 0 is the text's own first token, the attention sink.

    Keys stand as if the text ended right before position p, so their distances to what follows are the text's own.
    Memory beside the model: the text's cache twice, and about h * t * t + (h / g) * t * n scores in float32.
    Raises DoesNotFitError where keys can't be moved. Needs 1 < p < n and talks.
    """
    assert 1 < virtual_tokens < len(text) and talks, "too short a text, or nothing to match"
    check_compactable(model)
    context = read_context(model, text)
    teacher = _Teacher(context, _Rows.of([talk.teacher for talk in talks], [talk.matched for talk in talks], model))
    _read(model, teacher.rows, len(text), teacher)
    student = _Student(
        _moved(context, virtual_tokens - len(text), model),
        _Rows.of([talk.student for talk in talks], [talk.matched for talk in talks], model),
        virtual_tokens,
        teacher.outputs,
    )
    _read(model, student.rows, virtual_tokens, student)
    return [(k[None], v[None]) for k, v in student.pairs]


def _rope(model: CausalLM) -> dict[str, dict[str, Any]]:
    return rope_of(config_of(model.config.to_dict()), prefix_geometry(model)[2])


def _moved(context: Context, shift: int, model: CausalLM) -> Context:
    """The same cache as if read elsewhere; the sink stays at position 0."""
    frequencies = inverse_frequencies(_rope(model)["all"]).to(model.device)
    keys = tuple(torch.cat((k[:, :1], rerotate(k[:, 1:], shift, frequencies)), dim=1) for k in context.keys)
    return Context(keys=keys, values=tuple(value.float() for value in context.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Talks side by side in one row of t tokens, none seeing another."""

    ids: torch.Tensor
    """[1, t]"""
    positions: torch.Tensor
    """[1, t], from 0 in each talk."""
    hidden: torch.Tensor
    """[t, t]: 0 where a token sees another, else minus infinity."""
    matched: torch.Tensor
    """Where the matched tokens stand."""

    @staticmethod
    def of(talks: Sequence[Sequence[int]], matched: Sequence[int], model: CausalLM) -> _Rows:
        lengths = torch.tensor([len(talk) for talk in talks])
        owner = torch.repeat_interleave(torch.arange(len(talks)), lengths)
        ends = lengths.cumsum(0)
        seen = (owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
        return _Rows(
            ids=torch.tensor([[token for talk in talks for token in talk]], device=model.device),
            positions=torch.cat([torch.arange(length) for length in lengths])[None].to(model.device),
            hidden=torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).to(model.device),
            matched=torch.cat(
                [torch.arange(end - count, end) for end, count in zip(ends.tolist(), matched, strict=True)]
            ).to(model.device),
        )


def _read(model: CausalLM, rows: _Rows, first: int, reader: _Teacher | _Student) -> None:
    """Run the model over the rows; its attention asks `reader`."""
    with _attention(model), torch.inference_mode():
        model.get_decoder()(
            input_ids=rows.ids,
            position_ids=first + rows.positions,
            attention_mask=rows.hidden[None, None],
            use_cache=False,
            matching=reader,
        )


class _Local:
    """What a layer's queries make of their own talk: scores q [g, q, d] -> mass [g, q] and mean values [g, q, d]."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor) -> None:
        h, t, d = query.shape
        g = key.shape[0]
        self.queries = query.reshape(g, h // g * t, d).float()
        scores = (self.queries @ key.float().transpose(1, 2)).view(g, h // g, t, t) + hidden
        scores = scores.view(g, -1, t)
        self.mass = scores.logsumexp(-1)
        self.values = scores.softmax(-1) @ value.float()

    def joined(self, head: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention [q, d] of a KV head over keys [n, d], values [n, d] and the queries' own talk."""
        scores = self.queries[head] @ keys.T
        whole = torch.logaddexp(scores.logsumexp(-1), self.mass[head])
        here = (self.mass[head] - whole).exp()[:, None] * self.values[head]
        return (scores - whole[:, None]).exp() @ values + here


class _Teacher:
    """Attention over the whole text; keeps what it gave at the matched tokens."""

    def __init__(self, context: Context, rows: _Rows) -> None:
        self.rows = rows
        self._context = context
        self.outputs: list[torch.Tensor] = []
        """[g, q, d] of each layer."""

    def attend(self, layer: int, local: _Local) -> torch.Tensor:
        keys, values = self._context.keys[layer].float(), self._context.values[layer].float()
        found = torch.stack([local.joined(head, keys[head], values[head]) for head in range(len(keys))])
        self.outputs.append(found[:, _queries(self.rows, found.shape[1])])
        return found


class _Student:
    """Attention over virtual tokens that are fitted as each layer is reached."""

    def __init__(self, context: Context, rows: _Rows, virtual_tokens: int, targets: Sequence[torch.Tensor]) -> None:
        self.rows = rows
        self._context, self._tokens, self._targets = context, virtual_tokens, targets
        self.pairs: list[Pair] = []

    def attend(self, layer: int, local: _Local) -> torch.Tensor:
        chosen = _queries(self.rows, local.queries.shape[1])
        fitted = [
            _fit(
                self._context.keys[layer][head],
                self._context.values[layer][head],
                self._targets[layer][head],
                queries=local.queries[head][chosen],
                mass=local.mass[head][chosen],
                here=local.values[head][chosen],
                count=self._tokens - 1,
            )
            for head in range(len(local.queries))
        ]
        keys, values = (torch.stack(parts) for parts in zip(*fitted, strict=True))
        self.pairs.append((keys, values))
        return torch.stack([local.joined(head, keys[head], values[head]) for head in range(len(keys))])


def _queries(rows: _Rows, count: int) -> torch.Tensor:
    """Where the matched tokens' queries stand among a KV head's, one block of t for each of its heads."""
    length = rows.ids.shape[1]
    blocks = torch.arange(0, count, length, device=rows.matched.device)
    return (blocks[:, None] + rows.matched).reshape(-1)


def _fit(
    keys: torch.Tensor,
    values: torch.Tensor,
    targets: torch.Tensor,
    *,
    queries: torch.Tensor,
    mass: torch.Tensor,
    here: torch.Tensor,
    count: int,
) -> Pair:
    """K, V [1 + count, d] of one KV head, from those of the text [n, d]; the sink comes first, as it is.

    Behind them, attention with `queries` [q, d], whose own talk has `mass` [q] and mean `here` [q, d], comes as near
    to `targets` [q, d] as least squares get.
    """
    scores = queries @ keys.T
    whole = torch.logaddexp(scores.logsumexp(-1), mass)
    weights = (scores - whole[:, None]).exp()  # [q, n]
    looked_at = weights.square().mean(0)
    looked_at[0] = -1  # the sink is there anyway
    chosen = looked_at.topk(count).indices.sort().values
    bias = _masses(weights[:, chosen], weights[:, 1:].sum(1)).clamp_min(_BIAS_LEAST)
    bent = torch.cat((keys[:1], _bent(keys[chosen], queries, weights[:, chosen] * bias, bias.log())))

    scores = queries @ bent.T
    whole = torch.logaddexp(scores.logsumexp(-1), mass)
    shares = (scores - whole[:, None]).exp()
    missing = targets - (mass - whole).exp()[:, None] * here - shares[:, :1] * values[:1]
    shares, before = shares[:, 1:], values[chosen]
    product = shares.T @ shares
    ridge = _VALUE_RIDGE * product.diagonal().mean() * torch.eye(count, device=product.device)
    moved = _solve(product + ridge, shares.T @ (missing - shares @ before))
    return bent, torch.cat((values[:1], before + moved))


def _masses(weights: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How many times each key must count, at least 0: least squares of weights [q, p] to the mass wanted [q]."""
    product, aim = weights.T @ weights, weights.T @ wanted
    step = 1 / torch.linalg.matrix_norm(product, ord=2)
    counts = torch.ones_like(aim)
    for _ in range(_MASS_STEPS):  # projected gradient
        counts = (counts - step * (product @ counts - aim)).clamp_min(0)
    return counts


def _bent(keys: torch.Tensor, queries: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Keys [p, d] whose scores rise by `bias` [p] for these queries, each query counting as it looks at the key.

    A prefix has no room for a bias beside its keys; queries have a common part, though, along which it fits.
    """
    bent = []
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        part = slice(start, start + _KEYS_AT_ONCE)
        weighted = weights[:, part].T[:, :, None] * queries  # [p, q, d]
        products = weighted.transpose(1, 2) @ queries  # [p, d, d]
        ridge = _KEY_RIDGE * products.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        products = products + ridge[:, None, None] * torch.eye(keys.shape[1], device=keys.device)
        aims = weighted.sum(1) * bias[part, None]
        bent.append(keys[part] + _solve(products, aims[:, :, None])[:, :, 0])
    return torch.cat(bent)


def _solve(matrix: torch.Tensor, aims: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(matrix.double(), aims.double()).float()


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    matching: _Teacher | _Student,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: query [1, h, t, d], key and value [1, g, t, d] -> [1, t, h, d]."""
    _one, h, t, d = query.shape
    local = _Local(query[0] * scaling, key[0], value[0], attention_mask[0, 0])
    layer: int = module.layer_idx
    found = matching.attend(layer, local).to(query.dtype)
    return found.view(1, h, t, d).transpose(1, 2), None


@contextmanager
def _attention(model: CausalLM) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)
    former = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(former)
