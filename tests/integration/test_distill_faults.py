"""Bad luck and bad hosts in a distillation: each ends with a typed reason and in a sane state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memgrid.clock import ManualClock
from memgrid.errors import UnavailableError
from memgrid.specs import Spec, TrainSpec, parse_spec
from memgrid.units import Reason, ReasonCode
from memgrid_coordinator.heavy.replay import replay
from memgrid_coordinator.heavy.slots import Load
from memgrid_coordinator.lifecycle import CampaignState, DocumentState, LeaseState, UnitState
from memgrid_coordinator.services.explaining import Explaining
from memgrid_coordinator.store import campaigns, hosts
from tests.distilling import LIMIT_S, changed, distill, distilling, rounds, work_until
from tests.grids import OPERATOR, eventually, shared_replays

ROUNDS = rounds(enough=0.67)


class Stumbling:
    """The lane of replays, where the process dies under the first of them."""

    def __init__(self) -> None:
        self.replays = 0

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if function is replay:
            self.replays += 1
            if self.replays == 1:
                raise UnavailableError("replay: its process died, perhaps for want of memory")
        return await shared_replays().run(function, *args, **kwargs)

    @property
    def load(self) -> Load:
        return shared_replays().load

    async def close(self, drain: timedelta) -> None:
        """It is the tests' own."""


def on_training(reason: Reason) -> Callable[[Spec], Reason | None]:
    return lambda spec: reason if isinstance(spec, TrainSpec) else None


async def test_whoever_trains_otherwise_than_asked_is_caught_by_the_replay(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    in_one_go = distill(train={"steps_per_unit": 6, "segment_steps": 6})
    async with distilling(tmp_path, tiny_model_folder, parameters=in_one_go) as grid:
        cheat, honest = grid.crew
        await grid.study([honest])
        cheat.change = changed("train", learning_rate=0.001)
        await work_until(grid.has("train", UnitState.CHECKING), [cheat])
        (unit,) = await grid.units("train")

        async def is_judged() -> bool:
            await cheat.turn(want=0)
            return (await grid.leases(unit))[0].state is LeaseState.REJECTED

        await eventually(is_judged, limit_s=LIMIT_S)
        (lease,) = await grid.leases(unit)
        assert lease.reason is not None
        assert lease.reason.code is ReasonCode.REPLAY_DIFFERS
        assert "allowed" in lease.reason.text
        host = await grid.coordinator.store.read(lambda connection: hosts.get_host(connection, lease.host_id))
        assert host is not None and host.recent_faults == 1
        assert await cheat.turn() == [], "the same account gets no second try"
        document = await grid.finish()
        assert document.state is DocumentState.PUBLISHED, "the honest host made it good"
        assert grid.coordinator.metrics.audit_s.labels("train", "fault")._sum.get() > 0
        assert grid.coordinator.metrics.audit_flops.labels("train")._value.get() > 0
        story = await Explaining(grid.coordinator.store).explain(unit.key)
        assert "replay_differs" in [line.event.reason.code for line in story.lines if line.event.reason]


async def test_a_run_that_two_accounts_saw_diverge_goes_on_with_its_last_good_state(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    async with distilling(tmp_path, tiny_model_folder, hosts=3) as grid:
        first, second, third = grid.crew
        await grid.study([first])
        await grid.train(first, 1)
        diverged = Reason(code=ReasonCode.DIVERGED, text="step 4: loss 17.2, 1.1 before")
        first.refuses = second.refuses = on_training(diverged)
        await eventually(grid.has("train", UnitState.OPEN), limit_s=LIMIT_S)
        await first.turn()
        unit = (await grid.units("train"))[1]
        assert unit.state is UnitState.OPEN, "one account may be wrong, or lie"
        await second.turn()
        third.refuses = second.refuses
        document = await grid.finish()
        unit = (await grid.units("train"))[1]
        assert unit.reason == diverged
        assert document.state is DocumentState.PUBLISHED
        assert document.progress.steps == 3
        note = document.progress.note
        assert note is not None and note.code is ReasonCode.DIVERGED and "loss 17.2" in note.text


async def test_a_state_that_is_gone_ends_the_document(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, hosts=1) as grid:
        await grid.study(grid.crew)
        spec = parse_spec((await grid.units("train"))[0].spec)
        assert isinstance(spec, TrainSpec)
        grid.coordinator.blobs.path_of(spec.state).unlink()
        document = await grid.finish()
        assert document.state is DocumentState.FAILED
        assert document.reason is not None and document.reason.code is ReasonCode.STATE_MISSING
        assert spec.state[:19] in document.reason.text
        (unit,) = await grid.units("train")
        assert unit.state is UnitState.FAILED


async def test_a_file_that_is_gone_before_the_grid_needs_it_ends_the_document(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    async with distilling(tmp_path, tiny_model_folder, hosts=1) as grid:
        (text,) = [
            made.digest
            for made in (
                await grid.coordinator.store.read(lambda connection: campaigns.made_of(connection, 1))
            ).values()
            if made.name == "text"
        ]
        grid.coordinator.blobs.path_of(text).unlink()
        document = await grid.finish()
        assert document.reason is not None and document.reason.code is ReasonCode.STATE_MISSING


async def test_a_campaign_cancelled_mid_round_leaves_nothing_running(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, parameters=ROUNDS) as grid:
        one, other = grid.crew
        await grid.study([one], 3)
        (offer,) = (await other.host.sync(want=1)).leases
        await one.turn()
        await grid.coordinator.campaigns.cancel(OPERATOR, grid.submission.campaign.campaign_id)
        answer = await other.host.sync(held=[offer])
        assert [gone.reason.code for gone in answer.cancelled] == [ReasonCode.CAMPAIGN_CANCELLED]
        late = await other.host.sync(work=[other.compute(offer)])
        assert [ack.accepted for ack in late.acks] == [True], "its lease was still good for its credit"
        assert (await one.host.sync(want=3)).leases == ()
        await grid.coordinator.sweeps.run_now("documents")
        states = {unit.state for unit in await grid.units("train")}
        assert states <= {UnitState.CANCELLED, UnitState.ACCEPTED}
        document = await grid.document()
        assert document.state is DocumentState.CANCELLED
        assert (await grid.campaign()).state is CampaignState.CANCELLED


async def test_a_round_that_nobody_returns_ends_the_document(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, hosts=1, parameters=ROUNDS) as grid:
        (host,) = grid.crew
        await grid.study([host], 3)
        # The network ate its files each time; it may have them again at once.
        host.refuses = on_training(Reason(code=ReasonCode.INPUT_UNAVAILABLE, text="the line is cut"))
        document = await grid.finish()
        assert document.state is DocumentState.FAILED
        assert document.reason is not None and document.reason.code is ReasonCode.ROUND_UNANSWERED
        assert "no member of round 1 came back" in document.reason.text


async def test_a_round_goes_on_without_the_one_that_never_comes(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, parameters=ROUNDS) as grid:
        one, other = grid.crew
        await grid.study([one], 3)
        (offer,) = (await other.host.sync(want=1)).leases
        await grid.train(one, 2)
        await eventually(grid.has("train", UnitState.OPEN, 4), limit_s=LIMIT_S)
        made = await grid.coordinator.store.read(lambda connection: campaigns.made_of(connection, 1))
        assert "merge/0001" in made
        assert offer.unit_key not in made["merge/0001"].detail
        other.done.clear()
        document = await grid.finish()
        assert document.state is DocumentState.PUBLISHED


async def test_below_the_bar_nothing_is_published(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, parameters=distill(quality={"min_gap_closed": 1.0})) as grid:
        document = await grid.finish()
        assert document.state is DocumentState.FAILED
        assert document.reason is not None and document.reason.code is ReasonCode.BELOW_QUALITY
        assert document.progress.quality is not None
        assert f"{document.progress.quality.nll_cube:.3f} with the cube" in document.reason.text
        assert await grid.coordinator.publishing.search("manual") == []


async def test_a_spent_budget_publishes_what_was_learnt_by_then(tmp_path: Path, tiny_model_folder: Path) -> None:
    clock = ManualClock(datetime.now(UTC))
    deadline = (clock.now() + timedelta(minutes=5)).isoformat()
    async with distilling(tmp_path, tiny_model_folder, clock=clock, budget={"deadline": deadline}) as grid:
        await grid.study(grid.crew[:1])
        await grid.train(grid.crew[0], 1)
        clock.advance(timedelta(minutes=10))
        document = await grid.finish()
        assert document.state is DocumentState.PUBLISHED
        assert document.progress.note is not None and document.progress.note.code is ReasonCode.BUDGET_SPENT
        assert document.progress.steps == 3
        assert [unit.state for unit in await grid.units("train")][1:] in ([], [UnitState.CANCELLED])


async def test_device_hours_that_are_spent_on_study_end_the_document(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, hosts=1, budget={"device_hours": 1e-9}) as grid:
        document = await grid.finish()
        assert document.state is DocumentState.FAILED
        assert document.reason is not None and document.reason.code is ReasonCode.BUDGET_SPENT
        assert "device-hours are spent" in document.reason.text
        assert {unit.state for unit in await grid.units("study")} <= {UnitState.ACCEPTED, UnitState.CANCELLED}


@pytest.mark.parametrize("code", [ReasonCode.VOCABULARY_MISMATCH, ReasonCode.HELD_OUT_LEAKED])
async def test_what_hosts_say_of_a_units_inputs_ends_the_document(
    tmp_path: Path, tiny_model_folder: Path, code: ReasonCode
) -> None:
    async with distilling(tmp_path, tiny_model_folder) as grid:
        for one in grid.crew:
            one.refuses = on_training(Reason(code=code, text="shards/0000.safetensors: not for this"))
        document = await grid.finish()
        assert document.reason is not None and document.reason.code is code
        assert "shards/0000.safetensors" in document.reason.text


async def test_a_pause_holds_the_next_stage_too(tmp_path: Path, tiny_model_folder: Path) -> None:
    async with distilling(tmp_path, tiny_model_folder, hosts=1) as grid:
        campaign_id = grid.submission.campaign.campaign_id
        (host,) = grid.crew
        await work_until(grid.has("study", UnitState.ACCEPTED, 2), [host])
        offers = (await host.host.sync(want=9)).leases
        await grid.coordinator.campaigns.pause(OPERATOR, campaign_id)
        works = [host.compute(offer) for offer in offers]
        await host.host.sync(work=works)
        await work_until(grid.has("study", UnitState.ACCEPTED, 3), [host])
        await grid.coordinator.sweeps.run_now("documents")
        assert await grid.units("train") == []
        await grid.coordinator.campaigns.resume(OPERATOR, campaign_id)
        await work_until(grid.has("train", UnitState.ACCEPTED), [host])


async def test_a_replay_that_could_not_be_done_blames_nobody_and_is_done_later(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    clock, stumbling = ManualClock(datetime.now(UTC)), Stumbling()
    async with distilling(tmp_path, tiny_model_folder, hosts=1, clock=clock, replays=stumbling) as grid:
        await work_until(grid.has("study", UnitState.ACCEPTED, 2), grid.crew)
        (unit,) = [unit for unit in await grid.units("study") if unit.state is UnitState.CHECKING]
        (lease,) = await grid.leases(unit)
        assert lease.state is LeaseState.AGREED
        for _ in range(5):
            await grid.coordinator.sweeps.run_now("judging")
        assert stumbling.replays == 3, "it is left alone for a while"
        clock.advance(timedelta(minutes=1))
        await work_until(grid.has("study", UnitState.ACCEPTED, 3), grid.crew, want=0)
        assert stumbling.replays == 4
