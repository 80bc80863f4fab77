"""Bad luck of a volunteer's machine: the lease goes back with its reason, and the next unit is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from memgrid.testing import Faults
from memgrid.units import ReasonCode
from tests.scripted_grid import ScriptedGrid
from tests.unit.volunteer.conftest import Volunteer


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """A disk of its own for a cache, or the test is skipped."""
    with ExitStack() as stack:
        try:
            stack.enter_context(Faults.small_disk(folder, 64 << 20))
        except PermissionError as error:
            pytest.skip(f"needs a file system of its own: {error}")
        yield


async def test_a_cache_without_room_gives_the_lease_back_and_recovers(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    with disk(volunteer.home.cache):
        async with volunteer.running(max_units=2) as run:
            await grid.until(lambda: grid.asks)
            with Faults.full_disk(volunteer.home.cache):
                grid.offer("one", 1, 2, 3)
                await grid.until(lambda: grid.released)
            grid.offer("two", 1, 5, 6)
            await run
    assert grid.released[0].reason.code is ReasonCode.INPUT_UNAVAILABLE
    assert "has no room" in grid.released[0].reason.text
    assert volunteer.units_run() == ["two"]
    assert volunteer.home.status()["accepted"] == 1


async def test_a_cache_that_can_only_be_read_gives_the_lease_back(grid: ScriptedGrid, volunteer: Volunteer) -> None:
    with disk(volunteer.home.cache):
        async with volunteer.running(max_units=2) as run:
            await grid.until(lambda: grid.asks)
            with Faults.read_only_disk(volunteer.home.cache):
                grid.offer("one", 1, 2, 3)
                await grid.until(lambda: grid.released)
            grid.offer("two", 1, 5, 6)
            await run
    assert grid.released[0].reason.text == "this host's disk: Read-only file system"
    assert volunteer.units_run() == ["two"]


async def test_a_worker_that_the_kernel_ends_gives_the_lease_back_and_starts_again(
    grid: ScriptedGrid, volunteer: Volunteer
) -> None:
    grid.offer("one", 9)
    async with volunteer.running(max_units=2) as run:
        await grid.until(lambda: volunteer.units_run() == ["one"])
        for child in psutil.Process(os.getpid()).children(recursive=True):
            if "tests.workers.quick" in child.cmdline():
                Faults.killed_for_memory(child.pid)
        await grid.until(lambda: grid.released)
        grid.offer("two", 1, 2, 3)
        await run
    assert grid.released[0].reason.code is ReasonCode.OUT_OF_MEMORY
    assert volunteer.units_run() == ["one", "two"]
