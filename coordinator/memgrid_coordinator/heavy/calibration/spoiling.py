"""Caches of other tokens, and caches that were changed, copied or made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Cache = list[tuple[Floats, Floats]]
"""(K, V) [h, n, d] of each layer."""
Ids = tuple[int, ...]


def _other_token(ids: Ids, place: int) -> int:
    """Another of the text's own tokens: what is unlikely there, but no stranger to the model."""
    return next((token for token in ids[place:] + ids if token != ids[place]), ids[place] + 1)


def _tokens_changed(share: float) -> Callable[[Ids], Ids]:
    def change(ids: Ids) -> Ids:
        count = max(1, round(share * len(ids)))
        places = [round((number + 0.5) * len(ids) / count) for number in range(count)]
        changed = list(ids)
        for place in places:
            changed[place] = _other_token(ids, place)
        return tuple(changed)

    return change


def _last_token_changed(ids: Ids) -> Ids:
    return (*ids[:-1], _other_token(ids, len(ids) - 1))


def _noisy(share: float) -> Callable[[Sequence[Cache], int, int], Cache]:
    def change(caches: Sequence[Cache], place: int, seed: int) -> Cache:
        draw = np.random.default_rng(seed)

        def noise(values: Floats) -> Floats:
            size = share * float(np.sqrt((values.astype(np.float64) ** 2).mean()))
            return values + draw.normal(0, size, values.shape).astype(np.float32)

        return [(noise(k), noise(v)) for k, v in caches[place]]

    return change


def _copied(caches: Sequence[Cache], place: int, seed: int) -> Cache:
    return caches[(place + 1) % len(caches)] if len(caches) > 1 else [(v, k) for k, v in caches[place]]


def _random(caches: Sequence[Cache], place: int, seed: int) -> Cache:
    """Noise as large as the true numbers."""
    draw = np.random.default_rng(seed)

    def like(values: Floats) -> Floats:
        size = np.sqrt((values.astype(np.float64) ** 2).mean(axis=(1, 2), keepdims=True))
        made: Floats = (draw.normal(size=values.shape) * size).astype(np.float32)
        return made

    return [(like(k), like(v)) for k, v in caches[place]]


def _last_quarter_made_up(caches: Sequence[Cache], place: int, seed: int) -> Cache:
    """The quarter before it, again."""

    def repeated(values: Floats) -> Floats:
        quarter = values.shape[1] // 4
        return np.concatenate([values[:, :-quarter], values[:, -2 * quarter : -quarter]], axis=1)

    return [(repeated(k), repeated(v)) for k, v in caches[place]]


OTHER_IDS: dict[str, Callable[[Ids], Ids]] = {
    "one token changed": _tokens_changed(0.0),
    "1 % of tokens changed": _tokens_changed(0.01),
    "5 % of tokens changed": _tokens_changed(0.05),
    "last token changed": _last_token_changed,
    "context cut in half": lambda ids: ids,
    "RoPE off by one": lambda ids: ids,
}
"""What is read instead of the text; of the last two the positions or the past are wrong (`caches`)."""
SPOILT: dict[str, Callable[[Sequence[Cache], int, int], Cache]] = {
    "noise of 0.3 %": _noisy(0.003),
    "noise of 1 %": _noisy(0.01),
    "another chunk's cache": _copied,
    "random numbers": _random,
    "last quarter made up": _last_quarter_made_up,
}
"""What becomes of honest caches: all of them, the place of the one to change, and a seed."""
