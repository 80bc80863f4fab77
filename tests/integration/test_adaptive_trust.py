"""One host computes, the grid looks at some of it: what is final when, and what becomes of a cheat's results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection

from memgrid.digest import Digest
from memgrid.errors import UnknownCubeError
from memgrid.kinds.audit import Zone
from memgrid.units import LeaseId, ReasonCode
from memgrid_coordinator.lifecycle import CampaignState, DocumentState, LeaseState, UnitState
from memgrid_coordinator.policy.life import Confirmed
from memgrid_coordinator.records import Unit
from memgrid_coordinator.services.explaining import Explaining
from memgrid_coordinator.services.ordering import JudgingRule
from memgrid_coordinator.services.retracting import retract
from memgrid_coordinator.services.settling import settle
from memgrid_coordinator.store import audits
from tests.crews import BLIND, CHAINED, STRICT, Grid, chunks, grid_of
from tests.distilling import work_until
from tests.grids import OPERATOR, eventually


async def test_one_honest_host_is_enough(tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path) -> None:
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=1, trust=STRICT) as grid:
        submission = await grid.submit({"a.txt": chunks(4)})
        campaign = await grid.finish(submission, grid.crew)
        assert campaign.state is CampaignState.COMPLETED
        for unit in await grid.units(submission):
            (lease,) = await grid.leases(unit)
            assert lease.state is LeaseState.AGREED
            done = await grid.coordinator.store.read(
                lambda connection, lease=lease: audits.of_leases(connection, [lease.lease_id])[lease.lease_id]
            )
            assert done and {audit.zone for audit in done} == {Zone.PASS}, "a newcomer's results are all looked at"
        assert await grid.credit_of(grid.crew[0]) == campaign.produced_flops


async def test_where_nobody_else_is_there_nothing_waits_for_somebody_else(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    always_twice = replace(STRICT, probation_blind=1.0)
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=1, trust=always_twice) as grid:
        submission = await grid.submit({"a.txt": chunks(2)})
        assert (await grid.finish(submission, grid.crew)).state is CampaignState.COMPLETED
        assert all(unit.min_replicas == 1 for unit in await grid.units(submission))


async def test_a_newcomer_with_another_model_is_found_at_its_first_result(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=2, trust=STRICT) as grid:
        honest, cheat = grid.crew
        cheat.model_folder = other_model_folder
        submission = await grid.submit({"a.txt": chunks(1)})

        async def is_rejected() -> bool:
            (unit, *_) = await grid.units(submission)
            return any(lease.state is LeaseState.REJECTED for lease in await grid.leases(unit))

        await work_until(is_rejected, [cheat])
        (unit, *_) = await grid.units(submission)
        (rejected,) = await grid.leases(unit)
        assert rejected.reason is not None and rejected.reason.code is ReasonCode.REPLAY_DIFFERS
        assert "allowed" in rejected.reason.text
        assert "host_at_fault" in await grid.events(cheat)
        campaign = await grid.finish(submission, [honest])
        assert campaign.state is CampaignState.COMPLETED
        assert await grid.credit_of(cheat) == 0


async def test_what_nobody_looked_at_is_provisional_until_later_audits_pass(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=1, trust=BLIND) as grid:
        (host,) = grid.crew
        await grid.trust(host)
        waiting = await grid.keep_busy()
        submission = await grid.submit({"a.txt": chunks(2)})
        await work_until(grid.all_are(submission, UnitState.PROVISIONAL), [host])
        assert await grid.credit_of(host) == 0, "credit waits with the result"
        # When nothing is left to do, no later audit will come: what waits is looked at itself.
        campaign = await grid.finish(submission, [host])
        assert campaign.state is CampaignState.COMPLETED
        last = await grid.finish(waiting, [host])
        assert await grid.credit_of(host) == campaign.produced_flops + last.produced_flops


async def test_a_fault_takes_provisional_results_back(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    """A sleeper: honest at first, then with another model; nothing of it is looked at until the end."""
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=2, trust=BLIND) as grid:
        honest, sleeper = grid.crew
        await grid.trust(sleeper)
        waiting = await grid.keep_busy()
        submission = await grid.submit({"a.txt": chunks(6)})
        await sleeper.turn(want=3)
        sleeper.model_folder = other_model_folder
        await work_until(grid.all_are(submission, UnitState.PROVISIONAL), [sleeper])
        assert (await grid.finish(waiting, [honest, sleeper])).state is CampaignState.COMPLETED
        campaign = await grid.finish(submission, [honest])
        assert campaign.state is CampaignState.COMPLETED
        told = await grid.events(sleeper)
        assert "host_at_fault" in told and "audited" in told
        for unit in await grid.units(submission):
            result = next(one for one in await grid.leases(unit) if one.lease_id == unit.accepted_lease_id)
            assert result.host_id == honest.host.host_id or await is_right(grid, unit)
        lasts = (await grid.campaign(waiting)).produced_flops
        assert await grid.credit_of(sleeper) + await grid.credit_of(honest) == campaign.produced_flops + lasts


async def is_right(grid: Grid, unit: Unit) -> bool:
    """Whether a result is what the true model computes: an honest host's bytes, computed once more."""
    found = await grid.coordinator.store.read(
        lambda connection: audits.of_leases(connection, [LeaseId(unit.accepted_lease_id or "")])
    )
    return any(audit.zone is Zone.PASS for group in found.values() for audit in group)


async def test_a_chunk_that_continues_a_recalled_one_is_computed_again(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=2, trust=BLIND) as grid:
        honest, cheat = grid.crew
        await grid.trust(cheat)
        await grid.trust(honest)
        cheat.model_folder = other_model_folder
        waiting = await grid.keep_busy()
        submission = await grid.submit({"a.txt": chunks(4)}, activation=CHAINED)

        async def first_is_there() -> bool:
            return (await grid.units(submission))[0].state is UnitState.PROVISIONAL

        await cheat.turn()
        # It takes nothing more: what it would owe the other campaign, that one would have to wait for.
        await work_until(first_is_there, [cheat], want=0)

        async def others_continued_it() -> bool:
            return (await grid.units(submission))[2].state is UnitState.PROVISIONAL

        await work_until(others_continued_it, [honest])
        assert (await grid.finish(waiting, [honest])).state is CampaignState.COMPLETED
        campaign = await grid.finish(submission, [honest])
        assert campaign.state is CampaignState.COMPLETED
        wrong = (await grid.leases((await grid.units(submission))[0]))[0]
        assert wrong.state is LeaseState.REJECTED and wrong.host_id == cheat.host.host_id
        for unit in await grid.units(submission):
            result = next(one for one in await grid.leases(unit) if one.lease_id == unit.accepted_lease_id)
            assert result.host_id == honest.host.host_id


async def test_a_published_cube_with_a_wrong_result_is_retracted_and_made_again(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=2, trust=BLIND) as grid:
        honest, sleeper = grid.crew
        await grid.trust(sleeper)
        sleeper.model_folder = other_model_folder
        waiting = await grid.keep_busy()
        first = await grid.submit({"a.txt": chunks(1)}, request_id="first", priority=100)
        ids = [unit.unit_id for unit in await grid.units(first)]

        await work_until(grid.all_are(first, UnitState.PROVISIONAL), [sleeper])

        def confirm(connection: Connection) -> None:
            """As if two later audits had passed."""
            now = grid.coordinator.clock.now()
            rule = JudgingRule.of(grid.coordinator.settings, grid.coordinator.grid_key)
            audits.spare(connection, [LeaseId(unit.accepted_lease_id or "") for unit in found])
            settle(connection, dict.fromkeys(ids, Confirmed()), known={}, rule=rule, now=now)

        found = await grid.units(first)
        await grid.coordinator.store.write(confirm)
        grid.coordinator.judging.note_progress()

        async def is_over() -> bool:
            return (await grid.campaign(first)).state is CampaignState.COMPLETED

        await eventually(is_over)
        document = (await grid.campaign(first)).documents[0]
        wrong: Digest = document.cube_digest or Digest("")
        # When nothing is left to do its next results are looked at, and with them everything that it ever did.
        second = await grid.submit({"b.txt": chunks(1, "Later ")}, request_id="second", priority=50)

        async def is_caught() -> bool:
            return "host_at_fault" in await grid.events(sleeper)

        await work_until(is_caught, [sleeper])

        async def is_retracted() -> bool:
            return (await grid.campaign(first)).documents[0].state is DocumentState.RUNNING

        await eventually(is_retracted)
        campaign = await grid.finish(first, [honest])
        assert campaign.state is CampaignState.COMPLETED
        again = campaign.documents[0]
        assert again.cube == document.cube and again.cube_digest not in (None, wrong)
        manifest = await grid.coordinator.publishing.resolve(again.cube)
        assert manifest.digest != wrong
        story = await Explaining(grid.coordinator.store).explain(wrong)
        assert "Retracted on" in story.summary and "found to be wrong" in story.summary
        for submission in (second, waiting):
            assert (await grid.finish(submission, [honest])).state is CampaignState.COMPLETED
        story = await Explaining(grid.coordinator.store).explain(again.cube_digest or "")
        assert "audits" in story.summary and any(line.event.name == "audited" for line in story.lines)


async def test_a_retracted_cube_says_why_it_is_gone(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=1, trust=STRICT) as grid:
        submission = await grid.submit({"a.txt": chunks(1)})
        campaign = await grid.finish(submission, grid.crew)
        ids = [unit.unit_id for unit in await grid.units(submission)]
        await grid.coordinator.campaigns.cancel(OPERATOR, campaign.campaign_id)
        now = grid.coordinator.clock.now()
        await grid.coordinator.store.write(lambda connection: retract(connection, ids, "a test says so", now))
        with pytest.raises(UnknownCubeError, match=r"retracted on .*: a test says so"):
            await grid.coordinator.publishing.resolve(campaign.documents[0].cube)
        assert await grid.coordinator.publishing.search("") == []
