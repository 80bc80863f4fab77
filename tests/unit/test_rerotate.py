"""Keys moved by re-rotation are those a model computes at the new positions; where that can't be, it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from memgrid.cube.geometry import rope_of
from memgrid.cube.identity import ModelIdentity, identity_of_folder
from memgrid.cube.rerotate import check_rerotatable, inverse_frequencies, rerotate
from memgrid.errors import DoesNotFitError

HEAD_DIM = 64
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "large theta": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
    },
    "yarn with its own borders": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
}


def config_of(name: str) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=16_384,
        rope_parameters=dict(ROPES[name]),
    )


def rotated(config: LlamaConfig, k: torch.Tensor, start: int) -> torch.Tensor:
    """k [heads, n, dim] as the model rotates it for positions from `start` on."""
    rotary = LlamaRotaryEmbedding(config)
    positions = torch.arange(start, start + k.shape[1]).unsqueeze(0)
    cos, sin = rotary(k.unsqueeze(0), positions)
    return apply_rotary_pos_emb(k.unsqueeze(0), k.unsqueeze(0), cos, sin)[1][0]


@pytest.mark.parametrize("name", list(ROPES))
def test_frequencies_are_those_of_transformers_to_the_bit(name: str) -> None:
    config = config_of(name)
    expected = LlamaRotaryEmbedding(config).inv_freq
    found = inverse_frequencies(rope_of(config.to_dict(), HEAD_DIM)["all"])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", list(ROPES))
@given(start=st.integers(0, 3000), shift=st.integers(-3000, 9000), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_moved_keys_are_those_computed_there(name: str, start: int, shift: int, seed: int) -> None:
    shift = max(shift, -start)
    config = config_of(name)
    k = torch.randn(2, 5, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    moved = rerotate(
        rotated(config, k, start), shift, inverse_frequencies(rope_of(config.to_dict(), HEAD_DIM)["all"])
    )
    # Angles of thousands of radians in float32 are exact to about 5e-4; the model itself has that error.
    assert (moved - rotated(config, k, start + shift)).abs().max() < 4e-3


def test_moving_there_and_back_changes_nothing() -> None:
    frequencies = inverse_frequencies({"type": "default", "theta": 1e4, "rotary_dim": HEAD_DIM})
    k = torch.randn(2, 7, HEAD_DIM)
    assert (rerotate(rerotate(k, 4000, frequencies), -4000, frequencies) - k).abs().max() < 1e-5
    assert (rerotate(k, 1, frequencies) - k).abs().max() > 0.1


def test_only_the_rotary_part_is_turned() -> None:
    frequencies = inverse_frequencies({"type": "default", "theta": 1e4, "rotary_dim": 16})
    k = torch.randn(2, 7, HEAD_DIM)
    moved = rerotate(k, 100, frequencies)
    assert torch.equal(moved[..., 16:], k[..., 16:])
    assert not torch.allclose(moved[..., :16], k[..., :16])


@pytest.fixture
def identity(tiny_model_folder: Path) -> ModelIdentity:
    return identity_of_folder(tiny_model_folder)


def rope(**changes: Any) -> dict[str, dict[str, Any]]:
    return {"all": {"type": "default", "theta": 1e4, "rotary_dim": 16, **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": rope(type="dynamic", factor=2.0)}, "dynamic"),
        ({"rope": rope(type="longrope")}, "longrope"),
        ({"rope": rope(mrope_section=[4, 2, 2])}, "M-RoPE"),
        ({"rope": {"full_attention": rope()["all"], "sliding_attention": rope()["all"]}}, "one rotary embedding"),
        ({"rope": {}}, "one rotary embedding"),
        ({"sliding_window": 512}, "sliding_window 512"),
        ({"config": {"model_type": "cohere"}}, "cohere"),
        ({"config": {"model_type": "smollm3"}}, "smollm3"),
        ({"config": {}}, "model_type"),
    ],
)
def test_model_whose_keys_cannot_be_moved_is_refused(
    identity: ModelIdentity, changes: dict[str, Any], message: str
) -> None:
    check_rerotatable(identity)
    with pytest.raises(DoesNotFitError, match=f"^re-rotation: .*{message}"):
        check_rerotatable(replace(identity, **changes))
