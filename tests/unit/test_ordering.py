"""Which files are ordered: drawn after the report, by nothing a host could know, and the same after a restart."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memgrid.digest import digest_of
from memgrid.kinds.train import STATE_FILE, TRACE_FILE, output_names
from memgrid.signing import SigningKey
from memgrid.specs import AdapterKind, AdapterSpec, Schedule, TrainSpec
from memgrid.units import ComputeDtype, LeaseId, Output
from memgrid_coordinator.records import Lease
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.settings import Settings
from tests.unit.test_life import reported

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = TrainSpec(
    model=digest_of(b"model"),
    frame=digest_of(b"frame"),
    adapter=AdapterSpec(kind=AdapterKind.PREFIX, virtual_tokens=4, frozen_tokens=1),
    state=digest_of(b"state"),
    shards=(digest_of(b"shard"),),
    distractors=(),
    distractor_share=0.0,
    first_step=0,
    stop_step=8,
    total_steps=8,
    segment_steps=2,
    batch_rows=1,
    row_tokens=64,
    learning_rate=0.02,
    warmup_steps=0,
    schedule=Schedule.CONSTANT,
    seed=1,
    round=0,
    stream=0,
    streams=1,
    compute_dtype=ComputeDtype.FLOAT32,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path)


def trained(lease_id: str = "lease", salt: str = "") -> Lease:
    """A report of all files of a train unit."""
    outputs = tuple(
        Output(name=name, digest=digest_of(f"{name}{salt}".encode()), size_bytes=1000) for name in output_names(SPEC)
    )
    return replace(reported(1, "a"), lease_id=LeaseId(lease_id), outputs=outputs)


def test_the_draw_follows_from_the_grids_key_and_the_whole_report(settings: Settings) -> None:
    key = SigningKey.generate()
    rule, restarted = JudgingRule.of(settings, key), JudgingRule.of(settings, key)
    stranger = JudgingRule.of(settings, SigningKey.generate())
    draws = [
        rule.draw(trained()),
        rule.draw(trained("other")),
        rule.draw(trained(salt="x")),
        stranger.draw(trained()),
    ]
    assert restarted.draw(trained()) == draws[0]
    assert len(set(draws)) == 4
    assert {len(draw) for draw in draws} == {32}


def test_the_result_comes_first_and_with_it_the_two_ends_of_one_segment(settings: Settings) -> None:
    rule = JudgingRule.of(settings, SigningKey.generate())
    seen = set()
    for number in range(60):
        wanted = [output.name for output in rule.wanted(SPEC.to_bytes(), trained(f"lease{number}"))]
        assert wanted[:2] == [STATE_FILE, TRACE_FILE]
        assert len(wanted) in (3, 4), "the first segment begins with an input"
        seen.add(tuple(wanted[2:]))
    assert seen == {
        ("state-0001.safetensors",),
        ("state-0001.safetensors", "state-0002.safetensors"),
        ("state-0002.safetensors", "state-0003.safetensors"),
        ("state-0003.safetensors",),
    }, "every segment may be drawn"


def test_a_large_upload_has_longer(settings: Settings) -> None:
    rule = JudgingRule.of(settings, SigningKey.generate())
    assert rule.due_at(10, NOW) == NOW + settings.upload_shortest
    bytes_of_an_hour = 3600 * settings.upload_slowest_bytes_per_s
    assert rule.due_at(bytes_of_an_hour, NOW) == NOW + timedelta(hours=1)
