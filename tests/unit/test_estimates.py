"""The time that is left counts what does not exist yet, and never grows while everything goes well."""

from __future__ import annotations

from typing import Any

import pytest

from memgrid.kinds.state_file import state_bytes_max
from memgrid_coordinator.recipes import distill
from memgrid_coordinator.recipes.estimates import ahead_flops, stages_of
from memgrid_coordinator.recipes.steps import MoreUnits, Publish, Work
from memgrid_coordinator.store.campaigns import eta_s
from tests.unit.test_distill_recipe import ROUNDS, World, campaign_of, plan_of
from tests.unit.test_recipes import BASE


def left_flops(world: World) -> int:
    """Of units that exist, with their replicas, and of those that will."""
    trust = world.seen.campaign.trust
    existing = sum(unit.flops * trust.replicas(audited=unit.kind != "evaluate") for unit in world.open)
    return existing + ahead_flops(world.seen, is_trained="adapter" in world.seen.made)


@pytest.mark.parametrize("train", [{}, ROUNDS])
def test_what_is_left_shrinks_from_the_plan_to_nothing(train: dict[str, Any]) -> None:
    campaign = campaign_of(**train)
    world = World(campaign)
    stages = stages_of(campaign, distill.new_documents(plan_of(), campaign, BASE), BASE, ())
    left = [left_flops(world)]
    assert left[0] == sum(stage.flops_left for stage in stages)
    while not isinstance(step := world.step, Publish):
        if isinstance(step, Work):
            world.do(step)
        elif isinstance(step, MoreUnits):
            world.ask(step.units)
        else:
            world.accept()
        left.append(left_flops(world))
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0


def test_members_of_rounds_send_parameters_and_the_ends_of_a_segment() -> None:
    campaigns = [campaign_of(**train) for train in ({}, ROUNDS)]
    plans = [stages_of(each, distill.new_documents(plan_of(), each, BASE), BASE, ()) for each in campaigns]
    relay, rounds = (next(stage for stage in stages if stage.kind == "train") for stages in plans)
    adapter = campaign_of().distill.adapter.shape(plan_of().documents[0].token_count)
    bare, whole = (state_bytes_max(adapter, BASE.geometry, moments=moments) for moments in (False, True))
    assert relay.bytes == 3 * whole * relay.units
    assert rounds.bytes == (bare + 2 * whole) * rounds.units


def test_a_training_that_ended_early_leaves_only_the_evaluation() -> None:
    world = World(campaign_of())
    assert ahead_flops(world.seen, is_trained=True) < ahead_flops(world.seen, is_trained=False)


def test_one_document_goes_no_faster_than_one_host() -> None:
    assert eta_s(100, [400], [10.0, 10.0, 20.0]) == 100 / 40 + 400 / 10
    assert eta_s(100, [400] * 8, [10.0, 10.0, 20.0]) == 100 / 40 + 3200 / 40
    assert eta_s(100, [400], []) is None
    assert eta_s(0, [0], [10.0]) is None
