"""What a campaign file may ask of a distillation, and how what it can't mean is told."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from memgrid.campaign import CampaignFile, Publication, SourcePattern
from memgrid.campaign_distill import (
    DistillParameters,
    LoraAdapter,
    Merge,
    Mode,
    PrefixAdapter,
    Rounds,
    Start,
    Study,
    Training,
)
from memgrid.errors import InvalidError
from memgrid.specs import AdapterKind, AdapterSpec, Schedule

WHOLE: dict[str, Any] = {
    "name": "handbook",
    "model": "models/smollm2-135m-instruct",
    "recipe": "distill",
    "sources": [{"path": "docs/*.md"}],
    "publish": {"namespace": "handbook", "version": "1.0.0", "licence": "CC-BY-4.0"},
}


def parse(distill: Any, **more: Any) -> CampaignFile:
    text = yaml.safe_dump({**WHOLE, "distill": distill, **more})
    return CampaignFile.parse(text.encode(), where="campaign.yaml")


def problem(distill: Any, **more: Any) -> str:
    """The one line said about a file."""
    with pytest.raises(InvalidError) as caught:
        parse(distill, **more)
    (line,) = str(caught.value).splitlines()
    return line.removeprefix("campaign.yaml: ")


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("prefix", "distill.adapter: expected a mapping with kind prefix or lora, found 'prefix'"),
        ({"virtual_tokens": 8}, "distill.adapter: expected a mapping with kind prefix or lora, found no kind"),
        (
            {"kind": "prefx"},
            "distill.adapter: expected a mapping with kind prefix or lora, found kind 'prefx'",
        ),
        (
            {"kind": "prefix", "virtual_tokens": 1},
            "distill.adapter.virtual_tokens: expected a whole number from 2 to 4096, found 1",
        ),
        (
            {"kind": "prefix", "compression": "8"},
            "distill.adapter.compression: expected a number from 1 to 1000, found '8'",
        ),
        (
            {"kind": "prefix", "rank": 8},
            "distill.adapter.rank: unknown key, expected one of kind, virtual_tokens, compression",
        ),
        (
            {"kind": "lora", "rnak": 8},
            "distill.adapter.rnak: unknown key, expected one of kind, rank, alpha, targets, frozen_a_seed;"
            " did you mean rank?",
        ),
        (
            {"kind": "lora", "targets": [7]},
            "distill.adapter.targets[0]: expected a list of module names such as q_proj, found 7",
        ),
        (
            {"kind": "prefix", "virtual_tokens": 64, "compression": 8},
            "distill.adapter.compression: expected nothing beside virtual_tokens, found 8",
        ),
    ],
)
def test_a_faulty_adapter_is_told_without_the_branches_of_the_schema(adapter: Any, expected: str) -> None:
    assert problem({"adapter": adapter}) == expected


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"steps": 8, "tokens": 4096}, "tokens: expected nothing beside steps, found 4096"),
        ({"steps": 8, "warmup_steps": 8}, "warmup_steps: expected fewer than the 8 steps, found 8"),
        ({"steps_per_unit": 2}, "segment_steps: expected at most steps_per_unit (2), found 3"),
        (
            {"steps_per_unit": 401},
            "segment_steps: expected at least 5, so that a unit commits at most 100 states, found 3",
        ),
        (
            {"mode": "rounds", "rounds": {"local_steps": 2}},
            "segment_steps: expected at most rounds.local_steps (2), found 3",
        ),
        ({"rounds": {"members": 4}}, "rounds: expected nothing in mode relay, found a mapping"),
        (
            {"mode": "rounds", "steps_per_unit": 8},
            "steps_per_unit: expected nothing in mode rounds, where rounds.local_steps (32) counts, found 8",
        ),
        ({"mode": "rounds", "steps": 100}, "steps: expected a multiple of rounds.local_steps (32), found 100"),
        (
            {"row_tokens": 100},
            "row_tokens: expected room for the longest conversation (question_tokens + answer_tokens = 144),"
            " found 100",
        ),
        (
            {"distractors": ["handbook/one:1.0.0", "Handbook"]},
            "distractors[1]: expected a list of cubes such as handbook/chapter-1:1.0.0, found 'Handbook'",
        ),
        ({"siblings": "yes please"}, "siblings: expected true or false, found 'yes please'"),
        ({"rounds": {"trim": 0.5}}, "rounds.trim: expected a number from 0 to below 0.5, found 0.5"),
        ({"schedule": "cosin"}, "schedule: expected constant, linear or cosine, found 'cosin'"),
        ({"learning_rate": True}, "learning_rate: expected a number above 0, at most 1, found True"),
    ],
)
def test_what_training_can_not_mean_is_one_line(train: dict[str, Any], expected: str) -> None:
    assert problem({"train": train}) == f"distill.train.{expected}"


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"start": "sampled"}, "start: expected nothing for lora, which starts at zero, found 'sampled'"),
        (
            {"distractors": ["handbook/one"]},
            "distractors: expected nothing for lora: only prefixes are trained beside others, found a list of 1",
        ),
        (
            {"siblings": True},
            "siblings: expected false for lora: only prefixes are trained beside others, found true",
        ),
    ],
)
def test_what_only_a_prefix_can_have_is_refused_for_lora(train: dict[str, Any], expected: str) -> None:
    assert problem({"adapter": {"kind": "lora"}, "train": train}) == f"distill.train.{expected}"


def test_parameters_of_the_other_recipe_are_refused() -> None:
    found = problem({}, activation={"chunk_tokens": 64})
    assert found == "activation: expected nothing with recipe distill, found a mapping"


def test_whole_rounds_are_made_of_a_budget_in_tokens() -> None:
    campaign = parse({"train": {"mode": "rounds", "tokens": 100_000, "batch_rows": 4, "row_tokens": 512}})
    assert campaign.distill.train.total_steps == 64
    assert parse({"train": {"tokens": 100_000, "batch_rows": 4, "row_tokens": 512}}).distill.train.total_steps == 49


def test_an_adapter_takes_its_size_from_the_document() -> None:
    compressed = parse({"adapter": {"kind": "prefix", "compression": 8}}).distill.adapter.shape(512)
    assert compressed == AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=64, frozen_tokens=1)
    lora = parse({"adapter": {"kind": "lora", "targets": ["v_proj", "q_proj", "q_proj"]}}).distill.adapter.shape(512)
    assert (lora.targets, lora.alpha) == (("q_proj", "v_proj"), 16)


names = st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8})?", fullmatch=True)
adapters = st.one_of(
    st.builds(PrefixAdapter, kind=st.just("prefix"), virtual_tokens=st.none() | st.integers(2, 4096)),
    st.builds(PrefixAdapter, kind=st.just("prefix"), compression=st.floats(1, 1000) | st.integers(1, 1000)),
    st.builds(
        LoraAdapter,
        kind=st.just("lora"),
        rank=st.integers(1, 256),
        alpha=st.none() | st.integers(1, 1024),
        targets=st.lists(names, min_size=1, max_size=4).map(tuple),
        frozen_a_seed=st.none() | st.integers(0, 2**53 - 1),
    ),
)
relays = st.builds(
    Training,
    tokens=st.none() | st.integers(100_000, 2**40),
    learning_rate=st.none() | st.floats(1e-9, 1),
    schedule=st.sampled_from(Schedule),
    steps_per_unit=st.integers(8, 100),
    segment_steps=st.integers(1, 8),
    distractors=st.lists(names.map(lambda name: f"books/{name}"), max_size=3).map(tuple),
    siblings=st.booleans(),
    distractor_share=st.floats(0, 1),
    seed=st.integers(0, 2**53 - 1),
)
rounds = st.builds(
    Training,
    mode=st.just(Mode.ROUNDS),
    rounds=st.builds(
        Rounds,
        members=st.integers(1, 64),
        local_steps=st.integers(4, 300),
        merge=st.sampled_from(Merge),
        trim=st.floats(0, 0.49),
        wait_s=st.floats(0, 86400) | st.integers(0, 86400),
    ),
)


@given(adapters, relays | rounds, st.sampled_from(Start), st.floats(0.01, 2), st.integers(1, 65536))
def test_a_distillation_comes_back_as_it_was_sent(
    adapter: Any, train: Training, start: Start, temperature: float, conversations: int
) -> None:
    only_a_prefix_has = {"start": start} if adapter.kind == "prefix" else {"distractors": (), "siblings": False}
    train = train.model_copy(update=only_a_prefix_has)
    study = Study(temperature=temperature, conversations=conversations)
    campaign = CampaignFile(
        name="handbook",
        model="models/tiny",
        recipe="distill",
        sources=(SourcePattern(path="a.md"),),
        distill=DistillParameters(adapter=adapter, study=study, train=train),
        publish=Publication(namespace="handbook", version="1.0.0", licence="MIT"),
    )
    content = campaign.to_bytes()
    assert CampaignFile.from_bytes(content) == campaign
    assert CampaignFile.from_bytes(content).to_bytes() == content
    assert b'"activation":' not in content
