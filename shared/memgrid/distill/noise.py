"""Gumbel noise from a counter and a key: the same on every device, for any token, in any order.

Knows integers and numpy; knows no model and no generator of torch's. Drawing the largest of logits plus Gumbel noise
is sampling from their softmax (the Gumbel-max trick), and whoever has the key can repeat each draw by itself.
The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), chained over seed, purpose, conversation,
position and token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memgrid.specs import Purpose

Keys = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_CODES = {Purpose.TRAIN: 1, Purpose.HELD_OUT: 2}
_ASK_POSITION = (1 << 64) - 1
"""No token stands there: the draw of the seed prompt shares its key with those of the tokens."""


def conversation_keys(seed: int, purpose: Purpose, conversations: Sequence[int]) -> Keys:
    """One key a conversation [n]: of its unit only the seed and the purpose matter.

    >>> conversation_keys(1, Purpose.TRAIN, [0, 1])[1] == conversation_keys(1, Purpose.TRAIN, [1])[0]
    np.True_
    """
    key = _mixed(np.uint64(seed), np.uint64(_CODES[purpose]))
    keys: Keys = _mixed(key, np.asarray(conversations, dtype=np.uint64))
    return keys


def draw_asks(keys: Keys, count: int) -> list[int]:
    """Which of `count` seed prompts each conversation begins with, all equally often."""
    drawn = _mixed(keys, np.uint64(_ASK_POSITION)) % np.uint64(count)
    return [int(index) for index in drawn]


def gumbel(keys: Keys, positions: npt.NDArray[Any], tokens: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The noise of each candidate: keys [n] and positions [n], tokens [n, c] -> [n, c].

    >>> keys = conversation_keys(7, Purpose.TRAIN, range(3))
    >>> noise = gumbel(keys, np.zeros(3), np.tile(np.arange(50_000), (3, 1)))
    >>> f"{noise.mean():.2f} {noise.std():.2f}"
    '0.58 1.29'
    """
    places = _mixed(keys, positions.astype(np.uint64))
    bits = _mixed(places[:, None], tokens.astype(np.uint64))
    # 53 bits and a half: never 0, never 1, so neither logarithm is infinite.
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: npt.NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _mixed(key: Any, value: Any) -> Any:
    """SplitMix64's next output from the state `key ^ value`; integers wrap around by design."""
    with np.errstate(over="ignore"):
        state = (key ^ value) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
        return state ^ (state >> np.uint64(31))
