"""The content store stays small and whole: what nobody can ask for goes, and what the disk lost is found."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memgrid.clock import SystemClock
from memgrid.digest import Digest
from memgrid.endpoint import GridEndpoint
from memgrid.errors import UnknownIdError
from memgrid.kinds.prefill import ModelGeometry
from memgrid.testing import Faults, SimulatedGpu
from memgrid_coordinator.app import Coordinator
from memgrid_coordinator.cli.main import app
from memgrid_coordinator.lifecycle import CampaignState, UnitState
from memgrid_coordinator.records import Submission
from memgrid_coordinator.services.collecting import Collecting, CollectRule
from memgrid_coordinator.store import units
from tests.grids import (
    OPERATOR,
    campaign_of,
    run_until_ended,
    simulated_hosts,
    submit,
    work_on,
)

TEXT = "The valve opens at three bar and closes at two. " * 8
RULE = CollectRule(every=timedelta(hours=1), grace=timedelta(hours=1), keep_failed=timedelta(days=7))


def make_old(coordinator: Coordinator, *digests: Digest) -> None:
    """As if nobody had touched these, or anything, for two hours."""
    before = time.time() - 7200
    for digest in digests or [blob.digest for blob in coordinator.blobs.kept_after(None, 1 << 30)]:
        os.utime(coordinator.blobs.path_of(digest), (before, before))


def collecting(coordinator: Coordinator) -> Collecting:
    return Collecting(store=coordinator.store, blobs=coordinator.blobs, clock=SystemClock(), rule=RULE)


def kept(coordinator: Coordinator) -> set[Digest]:
    return {blob.digest for blob in coordinator.blobs.kept_after(None, 1 << 30)}


async def make_cube(
    coordinator: Coordinator, endpoint: GridEndpoint, geometry: ModelGeometry, request_id: str = "request-1"
) -> Submission:
    submission = await submit(coordinator, {"manual.txt": TEXT}, request_id=request_id)
    async with simulated_hosts(endpoint, 2) as hosts:
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
    assert (await campaign_of(coordinator, submission)).state is CampaignState.COMPLETED
    return submission


async def outputs(coordinator: Coordinator) -> dict[int, Digest | None]:
    found = await coordinator.store.read(lambda connection: units.by_id(connection, range(1, 99)))
    return {unit.unit_id: unit.output_digest for unit in found.values() if unit.state is UnitState.ACCEPTED}


async def test_what_a_cube_and_its_model_are_made_of_stays(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    await make_cube(coordinator, endpoint, geometry)
    made = await outputs(coordinator)
    orphan = coordinator.blobs.put_bytes(b"pushed, and never named")
    make_old(coordinator)
    trial = await collecting(coordinator).run(is_trial=True)
    assert orphan in kept(coordinator)
    done = await collecting(coordinator).run()
    assert (trial.removed, trial.removed_bytes) == (done.removed, done.removed_bytes)
    assert orphan not in kept(coordinator)
    # A trial and the act leave what the pool needs: every output, and every file of every manifest.
    assert set(made.values()) <= kept(coordinator)
    assert await outputs(coordinator) == made
    for reference in ("handbook/manual:1.0.0", "models/tiny"):
        manifest = json.loads((await coordinator.publishing.resolve(reference)).content)
        named = {layer["digest"] for layer in [manifest["config"], *manifest["layers"]]}
        assert named <= kept(coordinator)
    # The tokens that units read are asked for again only with the units.
    assert len(kept(coordinator)) == done.kept
    assert (await collecting(coordinator).run()).removed == 0


async def test_what_is_young_or_under_way_stays(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"manual.txt": TEXT})
    make_old(coordinator)
    young = coordinator.blobs.put_bytes(b"just pushed; its manifest is on its way")
    renewed = coordinator.blobs.put_bytes(b"old, but asked about")
    make_old(coordinator, renewed)
    assert coordinator.blobs.renew(renewed)
    before = kept(coordinator)
    assert (await collecting(coordinator).run()).removed == 0
    assert kept(coordinator) == before >= {young, renewed}
    async with simulated_hosts(endpoint, 2) as hosts:
        await run_until_ended(coordinator, submission, {host: SimulatedGpu(geometry) for host in hosts})
    assert (await campaign_of(coordinator, submission)).state is CampaignState.COMPLETED


async def test_a_result_that_was_let_go_is_computed_again_when_somebody_wants_it(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    await make_cube(coordinator, endpoint, geometry)
    made = await outputs(coordinator)
    pushed = await coordinator.publishing.resolve("handbook/manual:1.0.0")
    await coordinator.publishing.remove_manifest(OPERATOR, "handbook/manual", pushed.digest)
    make_old(coordinator)
    await collecting(coordinator).run()
    assert not set(made.values()) & kept(coordinator)
    assert set((await outputs(coordinator)).values()) == {None}
    # The same accounts may do it again: it is new work, and paid.
    await make_cube(coordinator, endpoint, geometry, "request-2")
    assert await outputs(coordinator) == made, "the same units, the same bytes"
    assert set(made.values()) <= kept(coordinator)


async def test_what_a_campaign_wants_in_the_middle_of_a_pass_is_not_taken_from_it(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    await make_cube(coordinator, endpoint, geometry)
    pushed = await coordinator.publishing.resolve("handbook/manual:1.0.0")
    await coordinator.publishing.remove_manifest(OPERATOR, "handbook/manual", pushed.digest)
    made = await outputs(coordinator)
    make_old(coordinator)
    pass_ = collecting(coordinator)
    named = pass_._named

    async def named_then_wanted(failed_since):  # type: ignore[no-untyped-def]
        found = await named(failed_since)
        coordinator.sweeps._scheduler.pause()  # the campaign must not end before the pass does
        await submit(coordinator, {"manual.txt": TEXT}, request_id="request-2")
        return found

    pass_._named = named_then_wanted  # type: ignore[method-assign]
    await pass_.run()
    assert await outputs(coordinator) == made
    assert set(made.values()) <= kept(coordinator)


async def test_a_clock_that_jumps_takes_nothing_along(grid: tuple[Coordinator, GridEndpoint]) -> None:
    coordinator, _ = grid
    orphan = coordinator.blobs.put_bytes(b"its manifest comes in a minute")

    class Jumping(SystemClock):
        ahead = timedelta(days=400)
        monotonic = 0.0

        def now(self):  # type: ignore[no-untyped-def]
            return super().now() + self.ahead

        def monotonic_s(self) -> float:
            return self.monotonic

    clock = Jumping()
    sweep = Collecting(store=coordinator.store, blobs=coordinator.blobs, clock=clock, rule=RULE)
    assert await sweep.collect() == 0, "none is due"
    clock.monotonic += 3601
    assert await sweep.collect() == 0
    assert orphan in kept(coordinator)
    clock.ahead = timedelta(0)  # set right again: what was only seemingly old is young
    clock.monotonic += 3601
    assert await sweep.collect() == 0
    assert orphan in kept(coordinator)
    make_old(coordinator, orphan)
    for expected in (0, 1):
        clock.monotonic += 3601
        assert await sweep.collect() == expected


async def test_a_damaged_result_is_put_aside_and_computed_again(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry
) -> None:
    coordinator, endpoint = grid
    submission = await submit(coordinator, {"manual.txt": TEXT}, activation={"chunk_tokens": 32, "wrap": "plain"})
    async with simulated_hosts(endpoint, 2) as hosts:
        gpu = SimulatedGpu(geometry)
        lost = await _first_accepted(coordinator, hosts, gpu)
        Faults.half_written(coordinator.blobs.path_of(lost))
        found = await coordinator.scrubbing.run()
        assert [loss.digest for loss in found.losses] == [lost]
        assert found.losses[0].recomputed == 1
        assert not coordinator.blobs.has(lost)
        assert coordinator.blobs.set_aside_count() == 1
        await run_until_ended(coordinator, submission, dict.fromkeys(hosts, gpu))
    assert (await campaign_of(coordinator, submission)).state is CampaignState.COMPLETED
    assert coordinator.blobs.has(lost), "the same numbers, and so the same bytes"
    assert (await coordinator.scrubbing.run()).losses == []


async def _first_accepted(coordinator: Coordinator, hosts, gpu: SimulatedGpu) -> Digest:  # type: ignore[no-untyped-def]
    """Let two hosts do one unit, and keep all others for later."""
    done = {}
    for host in hosts:
        (offer,) = (await host.sync(want=1)).leases
        done[host] = await work_on(coordinator, gpu, offer)
        await host.sync(work=[done[host]])
    while not (made := [one for one in (await outputs(coordinator)).values() if one is not None]):
        for host, work in done.items():
            for order in (await host.sync(awaiting=[work.claim.lease_id])).uploads:
                await host.upload(order, work.content)
    return made[0]


async def test_damage_in_what_is_published_is_told_with_its_name(
    grid: tuple[Coordinator, GridEndpoint], geometry: ModelGeometry, tmp_path: Path
) -> None:
    coordinator, endpoint = grid
    await make_cube(coordinator, endpoint, geometry)
    (lost, *_) = [one for one in (await outputs(coordinator)).values() if one is not None]
    content = coordinator.blobs.read_bytes(lost)
    Faults.flipped_bit(coordinator.blobs.path_of(lost))
    with sqlite3.connect(tmp_path / "data" / "memgrid.db") as database:
        spoilt = "UPDATE pool_manifests SET content = CAST(content || ' ' AS BLOB) WHERE repository = ?"
        database.execute(spoilt, ("models/tiny",))
    database.close()
    answer = await asyncio.to_thread(CliRunner().invoke, app, ["scrub", "--data", str(tmp_path / "data")])
    assert answer.exit_code == 1
    assert f"damaged: blob {lost}: put aside; 0 units are open again" in answer.output
    assert "published in handbook/manual@sha256:" in answer.output
    assert "damaged: manifest models/tiny@sha256:" in answer.output
    with pytest.raises(UnknownIdError):
        coordinator.blobs.size_of(lost)
    # Whoever has the content pushes it again, and all is well.
    assert coordinator.blobs.put_bytes(content) == lost
    assert (await coordinator.scrubbing.run()).losses == []


async def test_a_scrub_goes_on_where_it_was(grid: tuple[Coordinator, GridEndpoint], tmp_path: Path) -> None:
    coordinator, _ = grid
    digests = sorted(coordinator.blobs.put_bytes(bytes([number]) * 5000) for number in range(8))
    mark = tmp_path / "data" / "scrub.json"
    mark.write_text(json.dumps({"after": digests[5]}))
    clock = SystemClock()
    scrubbing = type(coordinator.scrubbing)(
        store=coordinator.store,
        blobs=coordinator.blobs,
        healing=coordinator.healing,
        clock=clock,
        bytes_per_s=6000,
        mark=mark,
    )
    scrubbing._begins_s = 0.0
    ahead = len([one for one in kept(coordinator) if one > digests[5]])
    read = [await scrubbing.scrub() for _ in range(2 + ahead * 2)]
    assert sum(read) >= ahead
    assert max(read) <= 2, "a second reads no more than it may"
    assert json.loads(mark.read_text()) == {"after": None}


def test_a_folder_without_a_grid_is_no_place_to_collect(tmp_path: Path) -> None:
    for command in ("gc", "scrub"):
        answer = CliRunner().invoke(app, [command, "--data", str(tmp_path / "nothing")])
        assert answer.exit_code != 0


async def test_the_command_says_what_would_go_and_what_went(
    grid: tuple[Coordinator, GridEndpoint], tmp_path: Path
) -> None:
    coordinator, _ = grid
    orphan = coordinator.blobs.put_bytes(b"x" * 200_000)
    make_old(coordinator, orphan)
    command = ["gc", "--data", str(tmp_path / "data"), "--grace-hours", "1"]
    answer = await asyncio.to_thread(CliRunner().invoke, app, [*command, "--dry-run"])
    assert (answer.exit_code, "1 blobs, 0.2 MB, would go" in answer.output) == (0, True)
    assert coordinator.blobs.has(orphan)
    answer = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert (answer.exit_code, "1 blobs, 0.2 MB, went" in answer.output) == (0, True)
    assert not coordinator.blobs.has(orphan)
