"""Two hosts differ: the grid computes a piece of both again, and says who was wrong and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from memgrid.kinds.audit import Zone
from memgrid.units import LeaseId, ReasonCode
from memgrid_coordinator.lifecycle import CampaignState, LeaseState
from memgrid_coordinator.records import AuditPurpose
from memgrid_coordinator.services.explaining import Explaining
from memgrid_coordinator.store import audits
from tests.crews import STRICT, grid_of

TWO = {"min_replicas": 2}


@pytest.mark.parametrize("who", ["cheat", "nobody"])
async def test_the_wrong_one_of_two_is_found_without_a_third(
    who: str, tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=2, trust=STRICT) as grid:
        honest, other = grid.crew
        if who == "cheat":
            other.model_folder = other_model_folder
        submission = await grid.submit({"a.txt": "Valve 1."}, trust=TWO)
        campaign = await grid.finish(submission, grid.crew)
        assert campaign.state is CampaignState.COMPLETED
        (unit,) = await grid.units(submission)
        by_host = {lease.host_id: lease for lease in await grid.leases(unit)}
        assert set(by_host) == {host.host.host_id for host in grid.crew}, "no third host was asked"
        assert by_host[honest.host.host_id].state is LeaseState.AGREED
        assert await grid.credit_of(honest) == campaign.produced_flops
        lost = by_host[other.host.host_id]
        done = await grid.coordinator.store.read(
            lambda connection: audits.of_leases(connection, [LeaseId(lease.lease_id) for lease in by_host.values()])
        )
        story = await Explaining(grid.coordinator.store).explain(unit.key)
        told = [line.event.name for line in story.lines]
        if who == "nobody":
            assert lost.state is LeaseState.AGREED and not any(done.values())
            assert "unit_disputed" not in told
            return
        assert unit.accepted_lease_id == by_host[honest.host.host_id].lease_id
        assert lost.state is LeaseState.REJECTED and await grid.credit_of(other) == 0
        assert lost.reason is not None and lost.reason.code is ReasonCode.REPLAY_DIFFERS
        assert "allowed" in lost.reason.text and "at layer" in lost.reason.text
        assert "host_at_fault" in await grid.events(other)
        zones = {lease_id: [audit.zone for audit in group] for lease_id, group in done.items()}
        assert zones[lost.lease_id] == [Zone.FAULT]
        assert all(audit.purpose is AuditPurpose.DISPUTED for group in done.values() for audit in group)
        assert {"unit_disputed", "report_disputed", "audited", "report_rejected", "unit_accepted"} <= set(told)
