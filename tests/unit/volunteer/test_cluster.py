"""Machines beside the supervisor's own: what runs there, what comes back, and what happens when one goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memgrid.units import ReasonCode
from tests.scripted_grid import ScriptedGrid
from tests.stations import Stations
from tests.unit.volunteer.conftest import ALWAYS, Volunteer

LONG = (5, 3000)  # a minute of work, committed every step


@pytest.fixture
async def cluster(volunteer: Volunteer, tmp_path: Path) -> AsyncIterator[Stations]:
    """Two more machines with a GPU each; the supervisor's own is paused."""
    volunteer.find("cuda:0=GPU-a")
    stations = Stations(tmp_path / "nodes", ["one.lab", "two.lab"])
    volunteer.nodes = lambda: stations
    volunteer.control.pause(datetime.now(UTC), device_id="cuda:0")
    yield stations
    await stations.ended()


def units(volunteer: Volunteer) -> dict[str, str | None]:
    return {device["device_id"]: device["unit"] for device in volunteer.home.status().get("devices", [])}


async def test_other_machines_compute_and_their_results_are_delivered(
    grid: ScriptedGrid, volunteer: Volunteer, cluster: Stations
) -> None:
    for number in range(4):
        grid.offer(f"unit-{number}", 10, 200, number)
    await volunteer.run(max_units=4)
    assert {claim.lease_id for claim in grid.reports} == {f"unit-{number}" for number in range(4)}
    assert len(grid.uploads) == 4 and not grid.released
    for wire in cluster.stations.values():
        assert wire.methods.count("run") == 2, "as many units as there are devices to run them, at the same time"
        assert wire.methods.count("take") == 3, "the model once, and the tokens of each unit"


async def test_a_unit_goes_on_elsewhere_when_its_machine_is_wanted_or_gone(
    grid: ScriptedGrid, volunteer: Volunteer, cluster: Stations
) -> None:
    offer = grid.offer("unit", *LONG)
    async with volunteer.running():
        await grid.until(volunteer.progress)
        (first,) = volunteer.progress()
        other = {"one/cuda:0": "two/cuda:0", "two/cuda:0": "one/cuda:0"}[first]
        volunteer.control.pause(datetime.now(UTC), device_id=first)
        await grid.until(lambda: units(volunteer).get(other) == offer.unit_key and other in volunteer.progress())
        await grid.until(lambda: volunteer.why(first) == ReasonCode.OWNER_PAUSED)
        assert volunteer.device(other)["progress_share"] > 0
        assert not (cluster.folder / first.partition("/")[0] / "work" / "out" / "unit").exists()
        volunteer.control.resume(datetime.now(UTC), device_id=first)
        await grid.until(lambda: volunteer.device(first)["action"] == "run")
        cluster.kill(f"{other.partition('/')[0]}.lab")
        await grid.until(lambda: units(volunteer).get(first) == offer.unit_key)
        await grid.until(lambda: other not in units(volunteer))
        assert not grid.released
        await grid.until(lambda: f"{other.partition('/')[0]}: has left the cluster" in volunteer.lines)


async def test_a_machine_that_does_not_fit_is_named_and_one_that_joins_later_is_taken_up(
    grid: ScriptedGrid, volunteer: Volunteer, cluster: Stations
) -> None:
    cluster.strange = {"one.lab"}
    volunteer.prefer(f'{ALWAYS}[devices."two/cuda:0"]\nenabled = false\n')
    async with volunteer.running():
        await grid.until(lambda: volunteer.home.status().get("left_out"))
        why = volunteer.home.status()["left_out"]["one"]
        assert why.startswith("has memgrid ") and why.endswith(", this volunteer 0.0.1")
        await grid.until(lambda: volunteer.why("two/cuda:0") == ReasonCode.DEVICE_DISABLED)
        logged_in = grid.log_ins
        cluster.hosts.append("two.lan")
        await grid.until(lambda: "two-2/cuda:0" in units(volunteer))
        await grid.until(lambda: grid.log_ins > logged_in)
        volunteer.prefer(ALWAYS)
        await grid.until(lambda: volunteer.device("two/cuda:0")["action"] == "run")


async def test_leases_of_two_grids_with_one_name_run_beside_each_other(
    grid: ScriptedGrid, other: ScriptedGrid, volunteer: Volunteer, cluster: Stations
) -> None:
    cluster.hosts = ["one.lab"]
    volunteer.find("cuda:0=GPU-a cuda:1=GPU-b")
    volunteer.control.pause(datetime.now(UTC), device_id="cuda:1")
    volunteer.join(other, name="other")
    grid.offer("same", 5, 50)
    other.offer("same", 5, 50)
    await volunteer.run(max_units=2)
    assert [report.lease_id for report in (*grid.reports, *other.reports)] == ["same", "same"]
    assert not grid.released and not other.released
    assert len(volunteer.units_run()) == 2, "neither was cut off by the other"
