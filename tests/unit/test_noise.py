"""Noise that anybody can repeat: a function of who asks and where, spread like Gumbel's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memgrid.distill.noise import _mixed, conversation_keys, draw_asks, gumbel
from memgrid.specs import Purpose

TOKENS = np.arange(50_000)[None]


def noise(seed: int, conversation: int, position: int, purpose: Purpose = Purpose.TRAIN) -> np.ndarray:
    keys = conversation_keys(seed, purpose, [conversation])
    return gumbel(keys, np.array([position]), TOKENS)[0]


def test_the_noise_is_the_same_everywhere() -> None:
    """Fixed numbers: another machine, or another release, must not draw otherwise."""
    assert _mixed(np.uint64(0), np.uint64(0)) == 0xE220A8397B1DCDAF  # SplitMix64's first word from the seed 0
    keys = conversation_keys(1, Purpose.TRAIN, [0, 5])
    assert keys.tolist() == [12035550249420947055, 4517933670823692284]
    assert gumbel(keys, np.array([0, 3]), np.array([[7], [49151]])).round(12).tolist() == [
        [1.656250721546],
        [1.574725778316],
    ]


@given(st.integers(0, 2**53 - 1), st.integers(0, 2**40), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5))
def test_each_candidate_has_noise_of_its_own_whoever_asks_beside(seed: int, position: int, tokens: list[int]) -> None:
    keys = conversation_keys(seed, Purpose.HELD_OUT, [3, 4])
    together = gumbel(keys, np.array([position, 1]), np.array([tokens, tokens]))
    for column, token in enumerate(tokens):
        alone = gumbel(keys[:1], np.array([position]), np.array([[token]]))
        assert alone[0, 0] == together[0, column]
    assert np.isfinite(together).all()


def test_the_noise_is_spread_like_gumbels() -> None:
    values = np.sort(noise(1, 0, 0))
    expected = np.exp(-np.exp(-values))
    found = np.arange(1, len(values) + 1) / len(values)
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand.
    assert np.abs(found - expected).max() < 1.95 / np.sqrt(len(values))


@pytest.mark.parametrize(
    "other",
    [(2, 0, 0, Purpose.TRAIN), (1, 1, 0, Purpose.TRAIN), (1, 0, 1, Purpose.TRAIN), (1, 0, 0, Purpose.HELD_OUT)],
)
def test_seed_conversation_position_and_purpose_each_give_other_noise(other: tuple[int, int, int, Purpose]) -> None:
    assert abs(np.corrcoef(noise(1, 0, 0), noise(*other))[0, 1]) < 0.02


def test_drawing_the_noisy_best_is_sampling() -> None:
    """The Gumbel-max trick, over many conversations: shares as the softmax has them."""
    logits = np.array([2.0, 1.0, 0.0, -1.0])
    keys = conversation_keys(3, Purpose.TRAIN, range(20_000))
    noisy = logits + gumbel(keys, np.zeros(len(keys)), np.tile(np.arange(4), (len(keys), 1)))
    shares = np.bincount(noisy.argmax(axis=1), minlength=4) / len(keys)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(keys))


def test_seed_prompts_are_drawn_equally_often() -> None:
    drawn = np.bincount(draw_asks(conversation_keys(1, Purpose.TRAIN, range(12_000)), 60), minlength=60)
    assert drawn.min() > 200 * 0.7 and drawn.max() < 200 * 1.3
