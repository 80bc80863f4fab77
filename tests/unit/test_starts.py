"""Starts: the sink stays, positions are a prefix's own, and a compacted text gives what the text gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memgrid.campaign_distill import Start
from memgrid.distill.adapters import PREFIX_TENSOR, Pair, hidden_states, prefix_pairs
from memgrid.distill.compaction import Talk, compact
from memgrid.distill.model import load_model
from memgrid.distill.shared_context import read_context
from memgrid.distill.starts import start_state
from memgrid.distill.state import read_state, state_bytes, without_moments
from memgrid.errors import InvalidError
from memgrid.kinds.shard import make_shard, write_shard
from memgrid.specs import AdapterKind, AdapterSpec, Purpose
from tests.models import make_tiny_model
from tests.training import FRAME, FROZEN_A, random_shard

TOKENS = 16
PREFIX = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=TOKENS, frozen_tokens=1)
TEXT = [1, *np.random.default_rng(3).integers(3, 300, 95).tolist()]
STARTS = pytest.mark.parametrize("start", list(Start))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return load_model(folder, torch.float32, torch.device("cpu"))


@STARTS
def test_sink_and_sizes(model: Any, start: Start, tmp_path: Path) -> None:
    assert start_state(model, PREFIX, start, TEXT, 1, tmp_path / "state.safetensors") is start
    state = read_state(tmp_path / "state.safetensors")
    embeddings = torch.from_numpy(state.parameters[PREFIX_TENSOR].copy())
    context = read_context(model, TEXT)
    assert state.step == 0 and not any(moment.any() for moment in (*state.m.values(), *state.v.values()))
    assert embeddings.shape == (TOKENS, 2 * 2 * 2 * 16)
    for layer, (k, v) in enumerate(prefix_pairs(embeddings, model)):
        torch.testing.assert_close(k[0, :, 0], context.keys[layer][:, 0])
        torch.testing.assert_close(v[0, :, 0], context.values[layer][:, 0])


def test_a_start_of_rounds_is_parameters_alone(model: Any, tmp_path: Path) -> None:
    for moments in (True, False):
        start_state(model, FROZEN_A, Start.FIRST_TOKENS, TEXT, 1, tmp_path / str(moments), moments=moments)
    whole, bare = (read_state(tmp_path / str(moments)) for moments in (True, False))
    assert whole.has_moments and not bare.has_moments
    assert state_bytes(without_moments(whole)) == (tmp_path / "False").read_bytes()


@STARTS
def test_same_bytes_again(model: Any, start: Start, tmp_path: Path) -> None:
    for name in ("one", "two"):
        start_state(model, PREFIX, start, TEXT, 5, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_first_tokens_are_the_texts_own_beginning(model: Any, tmp_path: Path) -> None:
    start_state(model, PREFIX, Start.FIRST_TOKENS, TEXT, 1, tmp_path / "state")
    embeddings = torch.from_numpy(read_state(tmp_path / "state").parameters[PREFIX_TENSOR].copy())
    asked = [7, 8, 9, 10]
    with torch.inference_mode():
        expected = model.get_decoder()(torch.tensor([TEXT[:TOKENS] + asked])).last_hidden_state[:, TOKENS:]
    torch.testing.assert_close(_answered(model, prefix_pairs(embeddings, model), asked), expected)


def test_nearly_whole_text_gives_nearly_what_the_text_gives(model: Any) -> None:
    """With one token left out of 96, what stands behind the prefix is what stood behind the text."""
    asked = [*range(40, 72)]
    pairs = compact(model, TEXT, len(TEXT) - 1, [Talk(teacher=tuple(asked), student=tuple(asked), matched=32)])
    with torch.inference_mode():
        expected = model.get_decoder()(torch.tensor([TEXT + asked])).last_hidden_state[:, len(TEXT) :]
    error = (_answered(model, pairs, asked) - expected).norm() / expected.norm()
    assert error < 0.05


def test_compaction_beats_other_starts_on_other_words(model: Any, tmp_path: Path) -> None:
    """Six times smaller, judged by words that were not matched."""
    again = np.random.default_rng(4).integers(3, 300, (12, 48)).tolist()
    talks = [Talk(teacher=tuple(each), student=tuple(each), matched=48) for each in again[:8]]
    error = {"matched": _error(model, compact(model, TEXT, TOKENS, talks), again[8:])}
    for start in Start:
        start_state(model, PREFIX, start, TEXT, 1, tmp_path / "state")
        embeddings = torch.from_numpy(read_state(tmp_path / "state").parameters[PREFIX_TENSOR].copy())
        error[start.value] = _error(model, prefix_pairs(embeddings, model), again[8:])
    assert error["matched"] < 0.9 * min(error["first_tokens"], error["sampled"])
    assert error["compacted"] < min(error["first_tokens"], error["sampled"])


def test_conversations_are_what_is_matched(model: Any, tmp_path: Path) -> None:
    shards = []
    for number, shard in enumerate((random_shard(1), random_shard(2))):
        shards.append(tmp_path / f"{number}.safetensors")
        write_shard(shards[-1], shard)
    start_state(model, PREFIX, Start.COMPACTED, TEXT, 1, tmp_path / "alone")
    start_state(model, PREFIX, Start.COMPACTED, TEXT, 1, tmp_path / "with", frame=FRAME, shards=shards)
    alone, given = (read_state(tmp_path / name).parameters[PREFIX_TENSOR] for name in ("alone", "with"))
    assert np.isfinite(given).all() and not np.array_equal(alone, given)


def test_held_out_conversations_are_refused(model: Any, tmp_path: Path) -> None:
    held_out = make_shard(
        tokenizer=FRAME.tokenizer,
        vocab=FRAME.vocab,
        purpose=Purpose.HELD_OUT,
        questions=[[5]],
        answers=[[6, 7]],
        top_ids=np.full((2, 1), 6),
        top_logprobs=np.zeros((2, 1)),
        tail=np.zeros(2),
    )
    write_shard(tmp_path / "held", held_out)
    with pytest.raises(InvalidError, match="held out"):
        start_state(model, PREFIX, Start.COMPACTED, TEXT, 1, tmp_path / "s", frame=FRAME, shards=[tmp_path / "held"])


@STARTS
def test_too_short_a_text(model: Any, start: Start, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="16 virtual tokens for a text of 16"):
        start_state(model, PREFIX, start, TEXT[:TOKENS], 1, tmp_path / "state")


@pytest.mark.parametrize("seed", [None, 7])
def test_lora_starts_as_nothing(model: Any, seed: int | None, tmp_path: Path) -> None:
    spec = AdapterSpec(kind=AdapterKind.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"), frozen_a_seed=seed)
    start_state(model, spec, Start.COMPACTED, TEXT, 1, tmp_path / "state")
    parameters = read_state(tmp_path / "state").parameters
    drawn = [value for name, value in parameters.items() if ".lora_A." in name]
    assert len(drawn) == (4 if seed is None else 0) and all(value.std() > 0.01 for value in drawn)
    assert not any(value.any() for name, value in parameters.items() if ".lora_B." in name)


def test_keys_that_cannot_be_moved(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "sliding_window", 8, raising=False)
    assert start_state(model, PREFIX, Start.COMPACTED, TEXT, 1, tmp_path / "state") is Start.FIRST_TOKENS


def _answered(model: Any, pairs: list[Pair], words: list[int]) -> torch.Tensor:
    count = len(words)
    with torch.inference_mode():
        return hidden_states(
            model,
            torch.tensor([words]),
            torch.arange(count)[None],
            torch.ones(1, count, dtype=torch.long),
            pairs,
        )


def _error(model: Any, pairs: list[Pair], words: list[list[int]]) -> float:
    """Relative, of the hidden states behind the prefix against those behind the text."""
    found, expected = [], []
    for each in words:
        found.append(_answered(model, pairs, each))
        with torch.inference_mode():
            expected.append(model.get_decoder()(torch.tensor([TEXT + each])).last_hidden_state[:, len(TEXT) :])
    return float((torch.cat(found) - torch.cat(expected)).norm() / torch.cat(expected).norm())
