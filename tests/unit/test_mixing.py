"""Distractors: one sink, keys where they stand, chosen by counter; and what can't be mixed is said so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memgrid.distill.adapters import PREFIX_TENSOR, Adapter, hidden_states, prefix_pairs
from memgrid.distill.mixing import TOGETHER_MAX, Mixer
from memgrid.distill.model import load_model
from memgrid.distill.state import state_bytes
from memgrid.distill.training import make_course, train
from memgrid.errors import InvalidError
from memgrid.specs import AdapterKind, AdapterSpec, TrainSpec
from tests.models import make_tiny_model
from tests.training import FRAME, LORA, PREFIX, conversations, make_spec, random_start


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(make_tiny_model(tmp_path_factory.mktemp("tiny")), torch.float32, torch.device("cpu"))


def prefix(model: Any, ids: list[int]) -> Adapter:
    """The caches of a text as a prefix: what a trained one begins as."""
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    halves = [half[0].transpose(0, 1).flatten(1) for k, v, *_ in cache for half in (k, v)]
    spec = AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=len(ids), frozen_tokens=1)
    return Adapter(spec=spec, tensors={PREFIX_TENSOR: torch.cat(halves, dim=1)})


def mixed_spec(**changes: Any) -> TrainSpec:
    return make_spec(**{"distractor_share": 1.0, "distractors": (make_spec().model,) * 2, **changes})


SINK = 9


def test_joined_keys_are_those_of_the_texts_where_they_then_stand(model: Any) -> None:
    # In the first layer keys know nothing of other tokens, only of their position: the joined ones can be read off.
    own, others = [SINK, 50, 51, 52, 53, 54], [[SINK, 60, 61, 62], [SINK, 70, 71]]
    spec = mixed_spec(batch_rows=8)
    mixer = Mixer(spec, [prefix(model, ids) for ids in others], model)
    pairs = prefix_pairs(prefix(model, own).tensors[PREFIX_TENSOR], model)
    rows = [(k.expand(8, -1, -1, -1), v.expand(8, -1, -1, -1)) for k, v in pairs]
    past, visible = mixer.mix(rows, 0, range(8))
    places = set()
    for row in range(8):
        order = mixer.order(0, row)
        places.add(order.index(None))
        text = [SINK, *(token for which in order for token in (own if which is None else others[which])[1:])]
        with torch.no_grad():
            k, v, *_ = next(iter(model(input_ids=torch.tensor([text]), use_cache=True).past_key_values))
        assert visible[row].tolist() == [position < len(text) for position in range(visible.shape[1])]
        torch.testing.assert_close(past[0][0][row, :, : len(text)], k[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(past[0][1][row, :, : len(text)], v[0], rtol=0, atol=1e-5)
    assert len(places) > 1


def test_filling_is_never_seen(model: Any) -> None:
    spec = mixed_spec(batch_rows=4)
    mixer = Mixer(spec, [prefix(model, [SINK, 60, 61, 62]), prefix(model, [SINK, 70])], model)
    pairs = prefix_pairs(prefix(model, [SINK, 50, 51]).tensors[PREFIX_TENSOR], model)
    past, visible = mixer.mix([(k.expand(4, -1, -1, -1), v.expand(4, -1, -1, -1)) for k, v in pairs], 1, range(4))
    assert not visible.all()
    text = torch.tensor([[20, 21, 22]])
    with torch.no_grad():
        for row in range(4):
            length = int(visible[row].sum())
            alone = [(k[row : row + 1, :, :length], v[row : row + 1, :, :length]) for k, v in past]
            filled = [(k[row : row + 1], v[row : row + 1]) for k, v in past]
            positions, segments = torch.arange(3)[None], torch.ones(1, 3, dtype=torch.int64)
            expected = hidden_states(model, text, positions, segments, alone)
            found = hidden_states(model, text, positions, segments, filled, visible[row : row + 1])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_choice_follows_the_counter_and_the_share(model: Any) -> None:
    others = [prefix(model, [SINK, 60 + number]) for number in range(5)]
    mixer, again = (Mixer(mixed_spec(distractor_share=0.25), others, model) for _ in range(2))
    orders = [mixer.order(step, row) for step in range(100) for row in range(4)]
    assert orders == [again.order(step, row) for step in range(100) for row in range(4)]
    assert 60 < sum(len(order) > 1 for order in orders) < 140
    for order in orders:
        assert order.count(None) == 1 and len(set(order)) == len(order) <= 1 + TOGETHER_MAX
    assert {which for order in orders for which in order} == {None, 0, 1, 2, 3, 4}


def test_training_among_distractors_has_the_same_bits_in_every_grouping(model: Any) -> None:
    spec = mixed_spec(stop_step=3, distractor_share=0.6)
    others = [prefix(model, [SINK, 60, 61, 62]), prefix(model, [SINK, 70, 71])]
    course = make_course(spec, conversations(), FRAME, Mixer(spec, others, model))
    start = random_start(PREFIX, model)
    found = {state_bytes(train(model, spec, start, course, micro_batch=micro_batch)[0]) for micro_batch in (1, 2, 4)}
    assert len(found) == 1
    without = train(model, spec, start, make_course(spec, conversations(), FRAME))[0]
    assert state_bytes(without) not in found


@pytest.mark.parametrize("trained", [LORA, PREFIX], ids=["lora among prefixes", "prefix among lora"])
def test_only_prefixes_mix(model: Any, trained: AdapterSpec, tmp_path: Path) -> None:
    distractor = prefix(model, [SINK, 60])
    if trained is PREFIX:
        distractor = Adapter(spec=LORA, tensors={})
    with pytest.raises(InvalidError, match="only prefixes can be trained among distractors"):
        Mixer(replace(mixed_spec(), adapter=trained), [distractor], model)
