"""Hosts that look honest for a while, begin anew, come in crowds, copy, or guess what will be looked at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sqlalchemy import func, select

from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import SimulatedGpu, SimulatedHost
from memgrid.units import LeaseId, ReasonCode
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.lifecycle import LeaseState, UnitState
from memgrid_coordinator.store import trust_records
from memgrid_coordinator.store.tables import credits
from memgrid_volunteer.numerics import find_devices
from tests.crews import BLIND, STRICT, Grid, chunks, grid_of
from tests.distilling import Distiller, work_until
from tests.grids import push_model, running_coordinator, simulated_hosts, submit, work_on
from tests.integration.attacks.attackers import TEXT, only

NUMERICS_CLASS = f"{find_devices()[0].facts.numerics_class} in float32"


async def _passed(grid: Grid, host: Distiller) -> int:
    record = await grid.coordinator.store.read(
        lambda connection: trust_records.get(connection, host.host.host_id, "prefill", NUMERICS_CLASS)
    )
    return record.passed


async def _credit_lines(coordinator: Coordinator) -> int:
    query = select(func.count()).select_from(credits)
    return int(await coordinator.store.read(lambda connection: connection.execute(query).scalar_one()))


async def test_sleeper_loses_all_that_was_taken_on_trust(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    """Honest until it is trusted, then it computes with another model what nobody seems to look at.

    Nothing of it counts, and nothing is paid, before later audits of it have passed; there always is one, at the
    latest when nothing else is left to do. The first that fails takes all of it back.
    """
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=2, trust=BLIND) as grid:
        honest, sleeper = grid.crew
        await grid.trust(sleeper)
        sleeper.model_folder = other_model_folder
        waiting = await grid.keep_busy()
        submission = await grid.submit({"a.txt": chunks(4)})
        await work_until(grid.all_are(submission, UnitState.PROVISIONAL), [sleeper])
        assert await _credit_lines(grid.coordinator) == 0
        assert await grid.coordinator.publishing.search("") == []
        taken = [LeaseId(unit.accepted_lease_id or "") for unit in await grid.units(submission)]
        await grid.finish(waiting, [honest])
        await grid.finish(submission, [honest])
        told = Counter(await grid.events(sleeper))
        assert told["host_at_fault"] >= 1
        assert await grid.credit_of(sleeper) == 0
        assert await _passed(grid, sleeper) == 0
        results = {unit.accepted_lease_id for unit in await grid.units(submission)}
        assert not results & set(taken), "every one of them was computed again by somebody else"


async def test_whitewash_gains_nothing(tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path) -> None:
    """Caught, the cheat enrols again under a new key, to be trusted like anybody.

    Anybody new is trusted with nothing: its first result is looked at, whatever it may become later. What the old
    account had is lost with it.
    """
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=3, trust=STRICT) as grid:
        honest, cheat, again = grid.crew
        cheat.model_folder = again.model_folder = other_model_folder
        submission = await grid.submit({"a.txt": chunks(2)})
        for washed in (cheat, again):

            async def is_caught(washed: Distiller = washed) -> bool:
                return "host_at_fault" in await grid.events(washed)

            await work_until(is_caught, [washed])
            assert await _passed(grid, washed) == 0
            assert await grid.credit_of(washed) == 0
        campaign = await grid.finish(submission, [honest])
        assert await grid.credit_of(honest) == campaign.produced_flops
        for unit in await grid.units(submission):
            for lease in await grid.leases(unit):
                if lease.host_id != honest.host.host_id:
                    assert lease.state is not LeaseState.AGREED


async def test_sybil_hosts_share_one_quota(tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry) -> None:
    """One account names itself a dozen machines, to hold a dozen times what a newcomer may, or to answer itself.

    Before trust the quota is the account's, not the machine's; and no account answers a unit twice.
    """
    async with running_coordinator(tmp_path / "data", trust_held_at_first=2) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        await submit(coordinator, {"manual.txt": TEXT * 4}, activation=INDEPENDENT, trust={"min_replicas": 2})
        async with simulated_hosts(endpoint, 1) as (first,):
            held = list((await first.sync(want=8)).leases)
            assert len(held) == 2
            more = [SimulatedHost(endpoint=endpoint, key=first.key, label=f"machine {n}") for n in range(6)]
            try:
                for host in more:
                    await host.enrol()
                    answer = await host.sync(want=8)
                    held += answer.leases
                    assert answer.idle_reason is not None
                assert len(held) == 2, "the account's, however many machines it says it has"
            finally:
                for host in more:
                    await host.close()


async def test_colluder_s_copy_is_audited_for_itself(
    tmp_path: Path, tiny_model_folder: Path, other_model_folder: Path
) -> None:
    """Two accounts of one cheat: what the one made up the other reports alike, so that they confirm each other.

    Where one executor is believed there is no partner to choose: the grid looks at each result for itself. And
    agreement earns no trust that an audit would not give: both begin at nothing, and both fail.
    """
    async with grid_of(tmp_path, tiny_model_folder, other_model_folder, hosts=3, trust=STRICT) as grid:
        honest, cheat, copier = grid.crew
        cheat.model_folder = copier.model_folder = other_model_folder
        submission = await grid.submit({"a.txt": chunks(2)})

        async def both_are_caught() -> bool:
            told = [await grid.events(host) for host in (cheat, copier)]
            return all("host_at_fault" in events for events in told)

        await work_until(both_are_caught, [cheat, copier])
        for host in (cheat, copier):
            assert await grid.credit_of(host) == 0
        assert (await grid.finish(submission, [honest])).state.value == "completed"
        for unit in await grid.units(submission):
            agreed = [lease for lease in await grid.leases(unit) if lease.state is LeaseState.AGREED]
            assert [lease.host_id for lease in agreed] == [honest.host.host_id]


async def test_audit_window_can_not_be_guessed(
    tmp_path: Path, tiny_model_folder: Path, geometry: ModelGeometry
) -> None:
    """The attacker reports, sees (or works out) which part will be looked at, and then changes the rest; or tries
    again and again for a draw that suits him.

    What is drawn follows from a secret of the grid, the lease and the reported digests: it is not told before it is
    over, a report is taken once, and another digest for the same lease is refused.
    """
    async with running_coordinator(tmp_path / "data", trust=STRICT) as (coordinator, endpoint):
        await push_model(coordinator, tiny_model_folder)
        await submit(coordinator, {"manual.txt": TEXT}, trust={"min_replicas": 1})
        async with simulated_hosts(endpoint, 1) as (host,):
            offer = only(await host.sync(want=1))
            first = await work_on(coordinator, SimulatedGpu(geometry), offer)
            answer = await host.sync(work=[first])
            assert answer.acks[0].accepted
            told = repr(answer)
            assert "audit" not in told and "draw" not in told and "window" not in told
            for seed in range(3):
                other = await work_on(coordinator, SimulatedGpu(geometry, noise=1e-3, seed=seed), offer)
                (ack,) = (await host.sync(work=[other])).acks
                assert not ack.accepted and ack.reason is not None
                assert ack.reason.code in (ReasonCode.CONFLICTING_REPORT, ReasonCode.LEASE_ENDED)


INDEPENDENT = {"layout": "independent", "chunk_tokens": 16, "wrap": "plain"}
