"""How much memory of a device its owner lets a worker take: said in the preferences, kept at once."""

from __future__ import annotations

import psutil

from memgrid.units import ReasonCode
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import ALWAYS, Volunteer

LONG = (5, 10_000)


async def test_a_worker_on_the_processor_that_takes_more_is_ended(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    grid.offer("one", *LONG)
    async with volunteer.running():
        await grid.until(volunteer.progress)
        volunteer.prefer(f"{ALWAYS}[devices.cpu]\nmemory_gb = 0.008\n")
        await grid.until(lambda: grid.released)
        (release,) = grid.released
        assert release.reason.code is ReasonCode.OUT_OF_MEMORY
        assert release.reason.text.endswith("of memory; it may take 8.0 MB")


async def test_a_worker_that_takes_less_goes_on(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    volunteer.prefer(f"{ALWAYS}[devices.cpu]\nmemory_gb = 8\n")
    grid.offer("one", 5, 60)
    async with volunteer.running():
        await grid.until(lambda: volunteer.home.status().get("accepted") == 1)


async def test_a_worker_on_a_gpu_is_told_and_one_that_runs_is_replaced(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    volunteer.find("cuda:0=GPU-a cpu=")
    grid.offer("one", *LONG)
    async with volunteer.running():
        await grid.until(volunteer.progress)
        before = volunteer.worker_pids()
        volunteer.prefer(f'{ALWAYS}[devices."cuda:0"]\nmemory_gb = 2.5\n')
        await grid.until(lambda: volunteer.worker_pids() - before and volunteer.progress())
        words = [psutil.Process(pid).cmdline() for pid in volunteer.worker_pids() - before]
        assert all(each[each.index("--memory-bytes") + 1] == "2500000000" for each in words)
        assert "one" in grid.granted, "the unit goes on here"
